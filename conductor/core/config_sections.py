"""The parts of the configuration, one a concept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from conductor.core.fields import NonEmptyStr
from conductor.core.message_size import DEFAULT_MAX_MESSAGE_BYTES
from conductor.core.retry import RetryPolicy
from conductor.core.urls import check_url, mask_url

Url = Annotated[str, AfterValidator(check_url)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def masked(arguments: Iterator[tuple[str | None, Any]]) -> Iterator[tuple[str | None, Any]]:
    """Replace the passwords in what a repr is made of."""
    for name, value in arguments:
        yield name, mask_url(value) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the configuration; its repr shows no password."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return masked(iter(super().__repr_args__()))


class RedisConfig(Section):
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


class BusConfig(Section):
    """How the message bus behaves; times in seconds."""

    buffer_size: int = Field(default=65536, ge=1)
    """Messages that wait for the callbacks of one subscription."""
    publish_timeout: Seconds = 10.0
    """How long a publish waits for an absent broker."""
    connect_timeout: Seconds = 5.0
    max_message_bytes: int = Field(default=DEFAULT_MAX_MESSAGE_BYTES, ge=1024)
    """Bytes of a message or task, as compact JSON; larger ones are refused when sent and when received."""


class WorkConfig(Section):
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


class NodeConfig(Section):
    """What a Celery node hosts; `heartbeat_interval` in seconds."""

    agent: NonEmptyStr | None = None
    """An agent known to workers ("coding"), or "package.module:Class"."""
    agent_id: NonEmptyStr | None = None
    heartbeat_interval: Seconds = 2.0


class TracingConfig(Section):
    """Where spans of OpenTelemetry go."""

    exporter: NonEmptyStr = "none"
    """none, otlp (HTTP), console (standard error), or "package.module:function" that gives a SpanExporter."""
    endpoint: Url | None = None
    """Of the collector; None: as OpenTelemetry's environment variables say, else http://localhost:4318."""
    service_name: NonEmptyStr = "conductor"
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """The part of the traces that begin here that is recorded."""

    @field_validator("exporter")
    @classmethod
    def _is_known(cls, exporter: str) -> str:
        module, colon, name = exporter.partition(":")
        if exporter in ("none", "otlp", "console") or (colon and module and name):
            return exporter
        raise ValueError(f"{exporter!r} is none of 'none', 'otlp', 'console' and package.module:function")


class MetricsConfig(Section):
    """Whether nodes and `conductor up` count, and where they show Prometheus the numbers."""

    port: int | None = Field(default=None, ge=0, le=65535)
    """Where `/metrics` is; 0 is any free port, None none."""
    host: NonEmptyStr = "127.0.0.1"
    """The address of this machine to listen on."""
    directory: Path | None = None
    """Where to count, for another process to show; it has to exist. None: in one of the node's own."""

    @property
    def enabled(self) -> bool:
        """Whether to count."""
        return self.port is not None or self.directory is not None


class BreakerConfig(Section):
    """When the circuit breaker of a type of agents opens; `recovery_timeout` in seconds."""

    failure_threshold: int = Field(default=5, ge=1)
    recovery_timeout: Seconds = 60.0
    success_threshold: int = Field(default=2, ge=1)
    """Probes that have to go well before an open breaker closes."""


class ErrorsConfig(Section):
    """What nodes do about tasks that fail."""

    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    max_worker_losses: int = Field(default=3, ge=1)
    """How often a task may end the process that works on it before it is a dead letter."""
    unknown_agent_seconds: Seconds = 30.0
    """How long a task waits for an agent that nobody has ever seen before it is a dead letter."""


class PolicySetting(Section):
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
