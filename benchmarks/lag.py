"""How long an event loop leaves its other tasks waiting."""

import asyncio
import time
from contextlib import suppress

_INTERVAL = 0.001


class LagMeter:
    """A task that wants to run every millisecond and notes how late it was.

    Two numbers a tick: the lag by the clock, which on a busy machine contains the waiting for a processor
    and, beside threads, for the interpreter lock; and the processor time that the loop's own thread spent
    since the tick before, which contains neither.
    """

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._busy: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to measure, in the running loop."""
        self._lags, self._busy = [], []
        self._task = asyncio.create_task(self._tick())

    async def stop(self) -> dict[str, float]:
        """End and report `max` and `p999` of the lag and `busy_max` of the processor time, in ms."""
        if self._task is None:
            raise RuntimeError("the meter was not started")
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        return {
            "ticks": len(self._lags),
            "max": 1000 * max(self._lags, default=0.0),
            "p999": 1000 * quantile(self._lags, 0.999),
            "busy_max": 1000 * max(self._busy, default=0.0),
        }

    async def _tick(self) -> None:
        while True:
            began, busy = time.monotonic(), time.thread_time()
            try:
                await asyncio.sleep(_INTERVAL)
            finally:
                # Also when it is cancelled: the last tick may be the longest.
                self._lags.append(max(0.0, time.monotonic() - began - _INTERVAL))
                self._busy.append(time.thread_time() - busy)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share (0..1) of the values lie; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
