"""Quotas that all processes share, in Redis."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from conductor.orchestration.quotas import Answer, Claim, Lasts, Quota, QuotaStore

if TYPE_CHECKING:
    from conductor.store.link import Link

#: Seconds that a dispatch has between reserving and saying that the task was sent.
LEASE_SECONDS = 30.0


class RedisQuotaStore(QuotaStore):
    """Keeps what is taken under `{key_prefix}quota:{key}`, by the server's clock; raises StateError.

    For tasks that become Celery tasks: one that holds something until it has ended is looked up in Celery's
    records, in the same database, when the quota is used up. So nodes need not know of quotas, and whoever
    dispatched a task may die.

    Args:
        link: an open connection, which the caller closes.
        key_prefix: what every key starts with.
        record_prefix: what the keys of Celery's records start with, before the id of the task.
        lease_seconds: how long a reservation lasts that is neither confirmed nor released, as its process
            died. Dispatching must not take longer.
        expires_seconds: how long a sum that lasts for ever is kept after its last change; None: always.
    """

    def __init__(
        self,
        link: Link,
        key_prefix: str,
        record_prefix: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        expires_seconds: float | None = None,
    ) -> None:
        self._link = link
        self._prefix = f"{key_prefix}quota:"
        self._record_prefix = record_prefix
        self._lease = lease_seconds
        self._expires = None if expires_seconds is None else max(expires_seconds, lease_seconds)

    async def look(self, quota: Quota, claim: Claim) -> Answer:
        """See `QuotaStore.look`."""
        return _answer(await self._run("look", quota, claim))

    async def reserve(self, quota: Quota, claim: Claim) -> Answer:
        """See `QuotaStore.reserve`."""
        return _answer(await self._run("reserve", quota, claim))

    async def confirm(self, quota: Quota, claim: Claim) -> None:
        """See `QuotaStore.confirm`."""
        await self._run("confirm", quota, claim)

    async def release(self, quota: Quota, claim: Claim) -> None:
        """See `QuotaStore.release`."""
        await self._run("release", quota, claim)

    async def _run(self, operation: str, quota: Quota, claim: Claim) -> Any:
        key = f"{self._prefix}{quota.key}"
        expires = self._expires if quota.lasts is Lasts.EVER else None
        arguments = [
            *(operation, quota.lasts.value, f"{claim.amount!r} {claim.run} {claim.task_id}"),
            *(repr(quota.limit), repr(quota.ceiling)),
            *(_microseconds(quota.period_seconds), _microseconds(self._lease), self._record_prefix),
            "" if expires is None else round(expires * 1000),
        ]
        return await self._link.run(["EVAL", _script(), 2, f"{key}:reserved", f"{key}:held", *arguments], key)


def _answer(reply: Any) -> Answer:
    granted, used, retry_after, final = reply
    return Answer(
        granted=bool(granted),
        used=float(used),
        retry_after=max(0.0, int(retry_after) / 1_000_000) if retry_after else None,
        final=bool(final),
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


@cache
def _script() -> str:
    return files("conductor.store").joinpath("lua", "quota.lua").read_text("utf-8")
