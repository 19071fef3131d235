"""Waiting for policies to allow what they deny now."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from conductor.core.exceptions import ConfigurationError, PolicyViolationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

#: Seconds, at least and at most, after which a policy that denied is asked again.
PAUSE = (0.05, 0.25)
#: Seconds between two attempts where a policy says when to try again, at least.
SHORTEST = 0.001


class WaitingLines:
    """Has those who are denied wait in lines, in the order in which they came; belongs to one event loop.

    The first of a line asks for all of it.
    """

    def __init__(self) -> None:
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def pass_through(self, line: object, ask: Callable[[], Awaitable[T]], wait: float | None) -> T:
        """Give what `ask` gives when it no longer raises PolicyViolationError, or raise that.

        It is asked once without `wait`; for `wait` seconds unless the denial says that waiting does not help;
        and with `math.inf` for as long as each denial says that it does. ConfigurationError for a bad `wait`.
        """
        if wait is not None and not wait >= 0:
            raise ConfigurationError(f"wait must be 0 or more seconds, not {wait!r}.")
        if not wait:
            return await ask()
        deadline = asyncio.get_running_loop().time() + wait
        # What a task's metadata holds need not be hashable.
        lock = self._lines.setdefault(repr(line), asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline if deadline < math.inf else None):
                await lock.acquire()
        except TimeoutError:
            # To be denied for its own reason; the ones before it were denied for theirs.
            return await ask()
        try:
            return await _ask_until(ask, deadline)
        finally:
            lock.release()


async def _ask_until(ask: Callable[[], Awaitable[T]], deadline: float) -> T:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await ask()
        except PolicyViolationError as denial:
            left = deadline - loop.time()
            if left <= 0 or not _is_worth_waiting(denial, certain=left == math.inf):
                raise
            pause = _pause(denial)
        await asyncio.sleep(min(pause, left))


def _is_worth_waiting(denial: PolicyViolationError, *, certain: bool) -> bool:
    helps = _facts(denial).get("waiting_helps")
    return helps is True if certain else helps is not False


def _pause(denial: PolicyViolationError) -> float:
    known = _facts(denial).get("retry_after")
    if isinstance(known, (int, float)) and not isinstance(known, bool) and known >= 0:
        return max(float(known), SHORTEST)
    return random.uniform(*PAUSE)  # noqa: S311 - no secret


def _facts(denial: PolicyViolationError) -> dict[str, object]:
    metadata = denial.details.get("metadata")
    return metadata if isinstance(metadata, dict) else {}
