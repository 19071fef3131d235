"""The message that travels on the bus, and the payloads it may carry."""

from datetime import datetime
from typing import Any

from pydantic import Field

from conductor.core.enums import AgentStatus, MessageType, Priority
from conductor.core.fields import NonEmptyStr, UtcDatetime, new_id, utc_now
from conductor.core.models import StrictModel, TaskDefinition, TaskResult


class AgentMessage(StrictModel):
    """One message; `model_dump_json` and `model_validate_json` are its form on the wire."""

    message_id: NonEmptyStr = Field(default_factory=new_id)
    message_type: MessageType
    sender_id: NonEmptyStr
    recipient_id: str | None = None
    payload: dict[str, Any] = Field(default_factory=dict)
    correlation_id: str | None = None
    priority: Priority = Priority.MEDIUM
    timestamp: UtcDatetime = Field(default_factory=utc_now)
    ttl_seconds: int | None = Field(default=None, ge=1)
    metadata: dict[str, Any] = Field(default_factory=dict)

    def is_expired(self, now: datetime | None = None) -> bool:
        """Tell whether the message is older than its `ttl_seconds` at `now` (aware; default: the present)."""
        if self.ttl_seconds is None:
            return False
        return ((now or utc_now()) - self.timestamp).total_seconds() > self.ttl_seconds

    def create_response(
        self, sender_id: str, message_type: MessageType, payload: dict[str, Any] | None = None
    ) -> "AgentMessage":
        """Make the answer to this message: to its sender, with its priority and correlated with it."""
        return AgentMessage(
            message_type=message_type,
            sender_id=sender_id,
            recipient_id=self.sender_id,
            payload={} if payload is None else payload,
            correlation_id=self.correlation_id or self.message_id,
            priority=self.priority,
        )


class TaskAssignmentPayload(StrictModel):
    """The payload of TASK_ASSIGNMENT."""

    task: TaskDefinition


class TaskResultPayload(StrictModel):
    """The payload of TASK_RESULT."""

    result: TaskResult


class FeedbackPayload(StrictModel):
    """The payload of FEEDBACK."""

    source_agent_id: NonEmptyStr
    findings: list[str] = Field(default_factory=list)
    severity: str = "info"
    recommendations: list[str] = Field(default_factory=list)
    affected_task_ids: list[str] = Field(default_factory=list)
    metrics: dict[str, Any] = Field(default_factory=dict)


class ErrorPayload(StrictModel):
    """The payload of ERROR."""

    error_code: NonEmptyStr
    error_message: str
    agent_id: str | None = None
    task_id: str | None = None
    traceback: str | None = None


class StatusUpdatePayload(StrictModel):
    """The payload of STATUS_UPDATE; `progress_percent` runs from 0 to 100."""

    agent_id: NonEmptyStr
    status: AgentStatus
    current_task_id: str | None = None
    progress_percent: float | None = Field(default=None, ge=0, le=100)
    message: str | None = None
