"""Settings from the environment, a file and defaults, in this order of precedence."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings.sources import InitSettingsSource

from conductor.core.config_errors import check_variables, explain, explain_no_json, read_yaml, source_of
from conductor.core.fields import NonEmptyStr
from conductor.core.retry import RetryPolicy
from conductor.core.urls import check_url, mask_url

__all__ = [
    "BreakerConfig",
    "BusConfig",
    "ConductorConfig",
    "ErrorsConfig",
    "NodeConfig",
    "PolicySetting",
    "RedisConfig",
    "WorkConfig",
    "load_config",
    "mask_url",
]

DEFAULT_FILE = Path("conductor.yaml")
ENV_PREFIX = "CONDUCTOR_"
_REDIS_SCHEMES = ("redis", "rediss")

_file: ContextVar[Path | None] = ContextVar("conductor_config_file", default=None)

Url = Annotated[str, AfterValidator(check_url)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


def _default_data_dir() -> Path:
    if base := os.environ.get("XDG_DATA_HOME"):
        return Path(base) / "conductor"
    try:
        return Path.home() / ".local" / "share" / "conductor"
    except RuntimeError:
        # A container may run under a user id that nobody has heard of.
        return Path.cwd() / ".conductor"


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} cannot be expanded: {error}") from None


def _masked(arguments: Iterator[tuple[str | None, Any]]) -> Iterator[tuple[str | None, Any]]:
    for name, value in arguments:
        yield name, mask_url(value) if isinstance(value, str) else value


class _Section(BaseModel):
    """A part of the configuration; its repr shows no password."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return _masked(iter(super().__repr_args__()))


class RedisConfig(_Section):
    """Where state and results are kept; no `url`: the broker if it is Redis, else the embedded server."""

    url: Url | None = None
    key_prefix: NonEmptyStr = "conductor:"
    result_expires_seconds: int = Field(default=86400, ge=1)
    """How long Celery's records of tasks are kept."""
    agent_expires_seconds: Seconds | None = None
    """How long the state of an agent is kept after its last heartbeat; None, as for the next two: always."""
    workflow_expires_seconds: Seconds | None = None
    """How long the state of a workflow is kept after the last write."""
    task_result_expires_seconds: Seconds | None = None
    """How long the result of a task is kept by the state manager."""

    @property
    def expires_seconds(self) -> dict[str, float]:
        """What a RedisStateManager takes: the seconds by kind, of the kinds that expire."""
        chosen = {
            "agent": self.agent_expires_seconds,
            "workflow": self.workflow_expires_seconds,
            "task_result": self.task_result_expires_seconds,
        }
        return {kind: seconds for kind, seconds in chosen.items() if seconds is not None}


class BusConfig(_Section):
    """How the message bus behaves; times in seconds."""

    buffer_size: int = Field(default=65536, ge=1)
    """Messages that wait for the callbacks of one subscription."""
    publish_timeout: Seconds = 10.0
    """How long a publish waits for an absent broker."""
    connect_timeout: Seconds = 5.0


class WorkConfig(_Section):
    """How tasks survive crashes; times in seconds."""

    visibility_timeout: Seconds = 15.0
    """How long a message that nobody touches stays with the node that took it; on RabbitMQ, how long until a
    node has the broker wait for it without limit."""
    touch_interval: Seconds = 3.0
    """How often a node touches the messages it holds, or looks which to have the broker wait for."""
    restore_interval: Seconds = 3.0
    """How often a node looks for messages that others abandoned; on Redis only."""
    hard_limit_grace: Seconds = 5.0
    """How long after its soft time limit a task is killed."""

    @model_validator(mode="after")
    def _touch_in_time(self) -> Self:
        if self.touch_interval * 2 > self.visibility_timeout:
            raise ValueError(
                f"touch_interval ({self.touch_interval} s) must be at most half of visibility_timeout "
                f"({self.visibility_timeout} s), else running tasks are started twice"
            )
        return self


class NodeConfig(_Section):
    """What a Celery node hosts; `heartbeat_interval` in seconds."""

    agent: NonEmptyStr | None = None
    """An agent known to workers ("coding"), or "package.module:Class"."""
    agent_id: NonEmptyStr | None = None
    heartbeat_interval: Seconds = 2.0


class BreakerConfig(_Section):
    """When the circuit breaker of a type of agents opens; `recovery_timeout` in seconds."""

    failure_threshold: int = Field(default=5, ge=1)
    recovery_timeout: Seconds = 60.0
    success_threshold: int = Field(default=2, ge=1)
    """Probes that have to go well before an open breaker closes."""


class ErrorsConfig(_Section):
    """What nodes do about tasks that fail."""

    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    max_worker_losses: int = Field(default=3, ge=1)
    """How often a task may end the process that works on it before it is a dead letter."""
    unknown_agent_seconds: Seconds = 30.0
    """How long a task waits for an agent that nobody has ever seen before it is a dead letter."""


class PolicySetting(_Section):
    """A policy by name: a word, or a mapping of one name to its parameters.

    The name is that of a policy which comes with Conductor, or "package.module:Class". What the names and
    parameters may be is checked where policies are made.
    """

    name: NonEmptyStr
    parameters: dict[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if isinstance(data, PolicySetting):
            return data
        if not isinstance(data, dict):
            given = data if isinstance(data, (int, float)) else f"a {type(data).__name__}"
            raise ValueError(f"a policy is a name, or a mapping of one name to its parameters, not {given}")
        if set(data) == {"name", "parameters"}:
            return data
        if len(data) != 1:
            raise ValueError(
                "a policy is a name, or a mapping of one name to its parameters, as in "
                f"'rate_limit: {{max_tasks: 10, period_seconds: 60}}'; this one has {len(data)} names: "
                f"{', '.join(map(repr, data))}"
            )
        ((name, parameters),) = data.items()
        if parameters is not None and not isinstance(parameters, dict):
            raise ValueError(
                f"the parameters of {name!r} are a mapping, as in '{name}: {{name: value}}', "
                f"not a {type(parameters).__name__}"
            )
        return {"name": name, "parameters": parameters or {}}


@dataclass(frozen=True)
class _Origin:
    """Where a configuration was read; configurations that say the same are equal wherever that was."""

    file: Path | None = field(default=None, compare=False)


class ConductorConfig(BaseSettings):
    """Everything that can be configured.

    Values come from the arguments, else the environment (`CONDUCTOR_*`, nested with `__`), else
    `conductor.yaml` in the working directory, else the defaults. repr and str mask passwords; dumps do not.
    """

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    broker_url: Url | None = None
    """None means `redis.url`, else the embedded server."""
    redis: RedisConfig = Field(default_factory=RedisConfig)
    data_dir: Annotated[Path, AfterValidator(_expanded)] = Field(default_factory=_default_data_dir)
    log_level: LogLevel = "INFO"
    bus: BusConfig = Field(default_factory=BusConfig)
    work: WorkConfig = Field(default_factory=WorkConfig)
    node: NodeConfig = Field(default_factory=NodeConfig)
    errors: ErrorsConfig = Field(default_factory=ErrorsConfig)
    policies: list[PolicySetting] = Field(default_factory=list)
    """What a Conductor asks before it dispatches a task, in this order."""
    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @model_validator(mode="after")
    def _agents_outlive_their_heartbeats(self) -> Self:
        kept, interval = self.redis.agent_expires_seconds, self.node.heartbeat_interval
        if kept is not None and kept < 3 * interval:
            raise ValueError(
                f"redis.agent_expires_seconds ({kept:g} s) must be at least 3 times node.heartbeat_interval "
                f"({interval:g} s), else agents that live vanish"
            )
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Remember the file, for messages."""
        self._origin = _Origin(_file.get() or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None))

    def source_of(self, *key: int | str) -> str:
        """Tell in words where the value of a key comes from, for a message about it."""
        return source_of(key, self._origin.file, ENV_PREFIX)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return _masked(iter(super().__repr_args__()))

    @property
    def effective_broker_url(self) -> str | None:
        """The broker to use; None means the embedded server."""
        return self.broker_url or self.redis.url

    @property
    def effective_redis_url(self) -> str | None:
        """Where to keep state and results; None means the embedded server."""
        if self.redis.url or not self.broker_url:
            return self.redis.url
        return self.broker_url if self.broker_url.partition("://")[0] in _REDIS_SCHEMES else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let arguments win over the environment, and the environment over the file."""
        check_variables(settings_cls, ENV_PREFIX)
        path = _file.get() or DEFAULT_FILE
        data = read_yaml(path) if _file.get() or path.is_file() else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=data)


def load_config(path: str | Path | None = None) -> ConductorConfig:
    """Load the configuration with the file at `path`, by default `conductor.yaml` if there is one.

    Raises FileNotFoundError when `path` is given and missing, and ConfigurationError, code CONFIG_ERROR,
    naming key and source, for everything else that is wrong.
    """
    chosen = None if path is None else Path(path)
    if chosen is not None and not chosen.exists():
        raise FileNotFoundError(f"There is no configuration file {str(chosen)!r}.")
    with _reading(chosen):
        try:
            return ConductorConfig()
        except ValidationError as error:
            file = chosen or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
            raise explain(error, ConductorConfig, file, ENV_PREFIX) from None
        except SettingsError as error:
            # Its cause may quote a password.
            raise explain_no_json(error, ConductorConfig, ENV_PREFIX) from None


@contextmanager
def _reading(path: Path | None) -> Iterator[None]:
    token = _file.set(path)
    try:
        yield
    finally:
        _file.reset(token)
