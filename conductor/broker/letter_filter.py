"""Which dead letters are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.exceptions import ConfigurationError
from conductor.core.fields import utc_now

if TYPE_CHECKING:
    from datetime import datetime


class Filters(TypedDict, total=False):
    """What letters may be chosen by; all that is given has to be true of a letter.

    `agent` is the id or the type of an agent. Ages are in seconds since the last failure.
    """

    reason: DeadLetterReason | str | None
    agent: str | None
    older_than: float | None
    newer_than: float | None


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Chooses letters; made at the moment that their ages are measured at."""

    reason: DeadLetterReason | None
    agent: str | None
    older_than: float | None
    newer_than: float | None
    letter_id: str | None
    now: datetime

    @classmethod
    def of(cls, filters: Filters, letter_id: str | None = None) -> LetterFilter:
        """Check filters; ConfigurationError, naming the one that cannot be used."""
        older, newer = filters.get("older_than"), filters.get("newer_than")
        for name, seconds in (("older_than", older), ("newer_than", newer)):
            if seconds is not None and not seconds >= 0:
                raise ConfigurationError(f"{name}: {seconds} is no number of seconds of 0 or more")
        return cls(_reason(filters.get("reason")), filters.get("agent"), older, newer, letter_id, utc_now())

    @property
    def is_open(self) -> bool:
        """Whether every letter is meant."""
        return (self.reason, self.agent, self.older_than, self.newer_than, self.letter_id) == (None,) * 5

    def matches(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is meant."""
        age = (self.now - letter.last_failed_at).total_seconds()
        return (
            (self.letter_id is None or letter.letter_id == self.letter_id)
            and (self.reason is None or letter.reason is self.reason)
            and (self.agent is None or self.agent in (letter.agent_id, letter.agent_type))
            and (self.older_than is None or age > self.older_than)
            and (self.newer_than is None or age < self.newer_than)
        )


def _reason(value: DeadLetterReason | str | None) -> DeadLetterReason | None:
    if value is None:
        return None
    try:
        return DeadLetterReason(value)
    except ValueError:
        known = ", ".join(DeadLetterReason)
        raise ConfigurationError(f"reason: {value!r} is none of {known}") from None
