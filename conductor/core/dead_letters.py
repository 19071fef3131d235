"""What is put aside because nobody could do it, and why."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from conductor.core.enums import MessageType, Priority
from conductor.core.fields import NonEmptyStr, UtcDatetime, new_id, utc_now
from conductor.core.messages import AgentMessage, ErrorPayload
from conductor.core.models import StrictModel

SENDER = "dead_letters"
#: Characters that an announcement has of an error, so that it is never too large to be sent.
_TEXT_LIMIT, _TRACEBACK_LIMIT = 4_000, 24_000


class DeadLetterReason(StrEnum):
    """Why something became a dead letter."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    """It failed with an error worth another try, as often as the retry policy allows."""
    REFUSED = "refused"
    """It is larger than messages may be, or not signed as they have to be."""
    REJECTED = "rejected"
    """It failed with an error that another try does not mend, or its agent said so."""
    UNDECODABLE = "undecodable"
    """It cannot be read, or is no valid task or message."""
    EXPIRED = "expired"
    """Nobody began it in time."""
    UNKNOWN_AGENT = "unknown_agent"
    """There is no agent of the name it was sent to."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit breaker of its agents was open."""
    TIME_LIMIT = "time_limit"
    """It took longer than it may."""
    WORKER_LOST = "worker_lost"
    """It ended the process that worked on it, again and again."""


class DeadLetter(StrictModel):
    """A message that was put aside, untouched, and what is known of its failure.

    `attempts` counts how often somebody tried it, the first time included. `queue` is the durable queue it
    came from, `channel` the channel of a message that was published. `body`, `headers` and `properties` are
    the original's; a body that is no UTF-8 is in base64, and `body_encoding` says so.
    """

    letter_id: NonEmptyStr = Field(default_factory=new_id)
    reason: DeadLetterReason
    task_id: str | None = None
    task_name: str | None = None
    message_id: str | None = None
    agent_id: str | None = None
    agent_type: str | None = None
    workflow_id: str | None = None
    error_type: str = ""
    error_code: str = "UNKNOWN_ERROR"
    error_message: str = ""
    traceback: str | None = None
    attempts: int = Field(default=1, ge=0)
    channel: str | None = None
    queue: str | None = None
    first_failed_at: UtcDatetime = Field(default_factory=utc_now)
    last_failed_at: UtcDatetime = Field(default_factory=utc_now)
    escalated: bool = False
    body: str = ""
    body_encoding: str | None = None
    headers: dict[str, Any] = Field(default_factory=dict)
    properties: dict[str, Any] = Field(default_factory=dict)


def announcement(letter: DeadLetter) -> AgentMessage:
    """Make the message that tells `conductor:dlq` of a letter."""
    payload = ErrorPayload(
        error_code=letter.error_code,
        error_message=letter.error_message[:_TEXT_LIMIT],
        agent_id=letter.agent_id,
        task_id=letter.task_id,
        traceback=None if letter.traceback is None else letter.traceback[-_TRACEBACK_LIMIT:],
    )
    facts = letter.model_dump(mode="json", exclude={"body", "headers", "properties", "traceback"})
    facts["error_message"] = letter.error_message[:_TEXT_LIMIT]
    return AgentMessage(
        message_type=MessageType.ERROR,
        sender_id=letter.agent_id or SENDER,
        payload=payload.model_dump(mode="json"),
        priority=Priority.HIGH,
        metadata={"dead_letter": facts},
    )
