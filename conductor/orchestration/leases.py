"""Leases: names that one owner at a time holds, for as long as it keeps renewing."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod

from conductor.core.exceptions import StateError


class Leases(ABC):
    """The part of a state manager that lets exactly one of many processes do something.

    A lease ends `seconds` after it was acquired or renewed last, by the store's clock. All methods may be
    repeated without harm. Raises StateError: STATE_NOT_CONNECTED, STATE_INVALID for seconds that are not
    above zero, and what a server adds.
    """

    @abstractmethod
    async def acquire_lease(self, name: str, owner: str, seconds: float) -> bool:
        """Take the lease if it is free, or renew one's own; False if another holds it."""

    @abstractmethod
    async def renew_lease(self, name: str, owner: str, seconds: float) -> bool:
        """Keep the lease for `seconds` from now; False if it is not held by `owner` any more."""

    @abstractmethod
    async def release_lease(self, name: str, owner: str) -> bool:
        """Give the lease back; False if it was not held by `owner`."""

    @abstractmethod
    async def lease_owner(self, name: str) -> str | None:
        """Tell who holds the lease, None if nobody does."""


class MemoryLeases(Leases):
    """Leases within one process."""

    _leases: dict[str, tuple[str, float]]

    @abstractmethod
    def _check_connected(self) -> None:
        """Raise StateError, code STATE_NOT_CONNECTED."""

    async def acquire_lease(self, name: str, owner: str, seconds: float) -> bool:
        length = checked_seconds(seconds)
        if self._holder(name) not in (None, owner):
            return False
        self._leases[name] = (owner, time.monotonic() + length)
        return True

    async def renew_lease(self, name: str, owner: str, seconds: float) -> bool:
        length = checked_seconds(seconds)
        if self._holder(name) != owner:
            return False
        self._leases[name] = (owner, time.monotonic() + length)
        return True

    async def release_lease(self, name: str, owner: str) -> bool:
        if self._holder(name) != owner:
            return False
        del self._leases[name]
        return True

    async def lease_owner(self, name: str) -> str | None:
        return self._holder(name)

    def _holder(self, name: str) -> str | None:
        self._check_connected()
        owner, end = self._leases.get(name, ("", -math.inf))
        if time.monotonic() < end:
            return owner
        self._leases.pop(name, None)
        return None


def checked_seconds(seconds: float) -> float:
    """Return the length of a lease; StateError STATE_INVALID if it cannot be one."""
    if not 0.001 <= seconds < math.inf:
        raise StateError(
            f"A lease cannot last {seconds!r} s: at least 0.001", "STATE_INVALID", {"seconds": repr(seconds)}
        )
    return seconds
