"""Waiting for a condition, with a limit, instead of sleeping and hoping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def wait_until(
    condition: Callable[[], T | Awaitable[T]], timeout: float = 10.0, interval: float = 0.01
) -> T:
    """Return the condition's first true value; AssertionError with its last value after timeout seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        assert time.monotonic() < deadline, f"not true within {timeout} s; last value: {value!r}"
        await asyncio.sleep(interval)


def wait_until_sync(condition: Callable[[], T], timeout: float = 10.0, interval: float = 0.01) -> T:
    """The same for code without an event loop."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout} s; last value: {value!r}"
        time.sleep(interval)
    return value
