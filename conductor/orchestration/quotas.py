"""Amounts that tasks share: what is taken of a quota, by whom, and for how long."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum

#: Sums of decimal fractions are a little off: three times 0.1 is more than 0.3.
ROUNDING = 1e-9


class Lasts(StrEnum):
    """How long a task holds what it took, once it was sent."""

    TASK = "task"
    """Until the task has ended."""
    PERIOD = "period"
    """For `period_seconds` after it was sent."""
    EVER = "ever"


@dataclass(frozen=True, slots=True)
class Quota:
    """An amount of which at most `limit` is taken at any time; those with one `key` are the same."""

    key: str
    limit: float
    lasts: Lasts
    period_seconds: float = 0.0

    @property
    def ceiling(self) -> float:
        """The limit, with what rounding may add to a sum that is just within it."""
        return self.limit * (1 + ROUNDING)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one dispatch of a task takes; `run` tells apart the dispatches of one task."""

    run: str
    task_id: str
    amount: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a claim is granted, and how much is taken without it.

    `retry_after` are the seconds after which it would be granted if nobody else came, where that is known. A
    `final` denial stands whatever ends meanwhile.
    """

    granted: bool
    used: float
    retry_after: float | None = None
    final: bool = False


class QuotaStore(ABC):
    """Remembers what is taken; every method may be called any number of times for one claim."""

    @abstractmethod
    async def look(self, quota: Quota, claim: Claim) -> Answer:
        """Tell whether `claim` would be granted now."""

    @abstractmethod
    async def reserve(self, quota: Quota, claim: Claim) -> Answer:
        """Decide, and take what is granted, in one atomic step."""

    @abstractmethod
    async def confirm(self, quota: Quota, claim: Claim) -> None:
        """Say that the task was sent: what it took is held for as long as the quota lasts."""

    @abstractmethod
    async def release(self, quota: Quota, claim: Claim) -> None:
        """Say that the task was not sent, or has ended; what is held for a period or for ever is kept."""


@dataclass(slots=True)
class _Taken:
    reserved: dict[Claim, None] = field(default_factory=dict)
    held: dict[Claim, float] = field(default_factory=dict)
    """With the time at which it was sent, by the monotonic clock."""
    spent: float = 0.0


class InMemoryQuotaStore(QuotaStore):
    """For the tasks of one process and event loop: a reservation lasts until it is released."""

    def __init__(self) -> None:
        self._taken: dict[str, _Taken] = {}

    async def look(self, quota: Quota, claim: Claim) -> Answer:
        """See `QuotaStore.look`."""
        return self._answer(quota, self._of(quota), claim)

    async def reserve(self, quota: Quota, claim: Claim) -> Answer:
        """See `QuotaStore.reserve`."""
        taken = self._of(quota)
        answer = self._answer(quota, taken, claim)
        if answer.granted:
            taken.reserved[claim] = None
        return answer

    async def confirm(self, quota: Quota, claim: Claim) -> None:
        """See `QuotaStore.confirm`."""
        taken = self._of(quota)
        if claim not in taken.reserved:
            return
        del taken.reserved[claim]
        if quota.lasts is Lasts.EVER:
            taken.spent += claim.amount
        else:
            taken.held[claim] = time.monotonic()

    async def release(self, quota: Quota, claim: Claim) -> None:
        """See `QuotaStore.release`."""
        taken = self._of(quota)
        taken.reserved.pop(claim, None)
        if quota.lasts is Lasts.TASK:
            taken.held.pop(claim, None)

    def _of(self, quota: Quota) -> _Taken:
        taken = self._taken.setdefault(quota.key, _Taken())
        if quota.lasts is Lasts.PERIOD:
            began = time.monotonic() - quota.period_seconds
            taken.held = {claim: sent for claim, sent in taken.held.items() if sent > began}
        return taken

    def _answer(self, quota: Quota, taken: _Taken, claim: Claim) -> Answer:
        used = taken.spent + sum(one.amount for one in (*taken.reserved, *taken.held) if one != claim)
        if claim in taken.reserved or used + claim.amount <= quota.ceiling:
            return Answer(granted=True, used=used)
        final = taken.spent + claim.amount > quota.ceiling and quota.lasts is Lasts.EVER
        return Answer(granted=False, used=used, retry_after=_retry_after(quota, taken), final=final)


def _retry_after(quota: Quota, taken: _Taken) -> float | None:
    too_many = len(taken.held) + 1 - int(quota.limit)
    if quota.lasts is not Lasts.PERIOD or taken.reserved or not 0 < too_many <= len(taken.held):
        return None
    sent = sorted(taken.held.values())[too_many - 1]
    return max(0.0, sent + quota.period_seconds - time.monotonic())
