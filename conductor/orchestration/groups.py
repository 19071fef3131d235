"""What a group owes a message: how often its members try it, and what becomes of it then."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conductor.core.channels import validate_group
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.exceptions import ConductorError, MessageBusError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage
from conductor.core.wording import error_text, traceback_text

if TYPE_CHECKING:
    from datetime import datetime

    from conductor.core.retry import RetryPolicy

NO_CODE = "UNKNOWN_ERROR"
#: Seconds: a year.
LONGEST_WINDOW = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened to a message in its group until now."""

    failures: int = 0
    """How often a member's callback raised."""
    losses: int = 0
    """How often a member's process died of it, or during it."""
    first_failed_at: datetime | None = None
    returned: bool = False
    """Whether a member gave it back unfinished."""

    @property
    def attempt(self) -> int:
        """The number of the attempt that comes now, from 1."""
        return self.failures + self.losses + 1

    @property
    def redelivered(self) -> bool:
        """Whether a member has had it before."""
        return self.returned or self.attempt > 1

    def failed(self) -> Trial:
        """Give what is known after one more failure."""
        return replace(self, failures=self.failures + 1, first_failed_at=self.first_failed_at or utc_now())

    def lost(self) -> Trial:
        """Give what is known after one more loss."""
        return replace(self, losses=self.losses + 1, first_failed_at=self.first_failed_at or utc_now())

    def given_back(self) -> Trial:
        """Give what is known after a member that left gave the message back."""
        return replace(self, returned=True)


def check_membership(group: str | None, deduplicate: float | None) -> None:
    """Refuse a bad group name or window: MessageBusError, INVALID_GROUP or INVALID_DEDUPLICATION."""
    if group is not None:
        validate_group(group)
    if deduplicate is None:
        return
    if group is None:
        raise _bad_window(deduplicate, "it needs a group: give `group` as well")
    if isinstance(deduplicate, bool) or not isinstance(deduplicate, int | float):
        raise _bad_window(deduplicate, "it is a number of seconds")
    if not (math.isfinite(deduplicate) and 0 < deduplicate <= LONGEST_WINDOW):
        raise _bad_window(
            deduplicate, f"it is a number of seconds over 0, at most {LONGEST_WINDOW:.0f} (a year)"
        )


def delivered_copy(body: str | bytes, trial: Trial) -> AgentMessage:
    """Make what a member's callback gets: the message, its metadata with `attempt` and `redelivered`."""
    message = AgentMessage.model_validate_json(body)
    message.metadata |= {"attempt": trial.attempt, "redelivered": trial.redelivered}
    return message


def verdict(error: BaseException, trial: Trial, policy: RetryPolicy) -> DeadLetterReason | None:
    """Tell why a message is dead after `error`, or None where it is worth another try.

    A code decides as the policy says. An error without one is worth another try: nobody has said that it is
    of the kind that comes back.
    """
    code = _code_of(error)
    if code != NO_CODE and not policy.is_retryable(code):
        return DeadLetterReason.REJECTED
    return DeadLetterReason.RETRIES_EXHAUSTED if trial.failures > policy.max_retries else None


def too_many_losses(message_id: str, trial: Trial) -> ConductorError:
    """Make the error of a message that ended its members' processes."""
    return ConductorError(
        f"Message {message_id} was with a member that died {trial.losses} times.",
        "WORKER_LOST",
        {"message_id": message_id, "losses": trial.losses},
    )


def dead_letter(
    error: BaseException, reason: DeadLetterReason, trial: Trial, message: AgentMessage | None, **facts: Any
) -> DeadLetter:
    """Make the letter of a message that a group gives up; `facts` are further fields of it."""
    now = utc_now()
    return DeadLetter(
        reason=reason,
        message_id=None if message is None else message.message_id,
        error_type=type(error).__name__,
        error_code=_code_of(error),
        error_message=error_text(error),
        traceback=traceback_text(error) if error.__traceback__ else None,
        attempts=trial.failures + trial.losses,
        first_failed_at=trial.first_failed_at or now,
        last_failed_at=now,
        **facts,
    )


def _code_of(error: BaseException) -> str:
    return error.error_code if isinstance(error, ConductorError) else NO_CODE


def _bad_window(window: object, reason: str) -> MessageBusError:
    return MessageBusError(
        f"deduplicate={window!r} is not usable: {reason}.", "INVALID_DEDUPLICATION", {"value": repr(window)}
    )
