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
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings.sources import InitSettingsSource

from conductor.core.config_errors import check_variables, explain, explain_no_json, read_yaml, source_of
from conductor.core.config_sections import (
    BreakerConfig,
    BusConfig,
    ErrorsConfig,
    MetricsConfig,
    NodeConfig,
    PolicySetting,
    RedisConfig,
    TracingConfig,
    Url,
    WorkConfig,
    masked,
)
from conductor.core.secrets import remember_secrets
from conductor.core.signing_config import SigningConfig
from conductor.core.urls import mask_url

__all__ = [
    "BreakerConfig",
    "BusConfig",
    "ConductorConfig",
    "ErrorsConfig",
    "MetricsConfig",
    "NodeConfig",
    "PolicySetting",
    "RedisConfig",
    "SigningConfig",
    "TracingConfig",
    "WorkConfig",
    "load_config",
    "mask_url",
]

DEFAULT_FILE = Path("conductor.yaml")
ENV_PREFIX = "CONDUCTOR_"
_REDIS_SCHEMES = ("redis", "rediss")

_file: ContextVar[Path | None] = ContextVar("conductor_config_file", default=None)

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]

LogFormat = Annotated[
    Literal["auto", "json", "console"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
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
    log_format: LogFormat = "auto"
    """auto: JSON from nodes, except in a terminal, and text from commands."""
    bus: BusConfig = Field(default_factory=BusConfig)
    work: WorkConfig = Field(default_factory=WorkConfig)
    node: NodeConfig = Field(default_factory=NodeConfig)
    errors: ErrorsConfig = Field(default_factory=ErrorsConfig)
    tracing: TracingConfig = Field(default_factory=TracingConfig)
    signing: SigningConfig = Field(default_factory=SigningConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
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
        """Remember the file, for messages, and the passwords, which no message may show."""
        for url in (self.broker_url, self.redis.url):
            remember_secrets(url)
        self._origin = _Origin(_file.get() or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None))

    def source_of(self, *key: int | str) -> str:
        """Tell in words where the value of a key comes from, for a message about it."""
        return source_of(key, self._origin.file, ENV_PREFIX)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return masked(iter(super().__repr_args__()))

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
