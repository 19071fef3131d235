"""What every measuring process can do."""

import asyncio
import gc

from benchmarks.lag import LagMeter


class Role:
    """What a process is there for; its public coroutine functions are the commands."""

    async def open(self) -> None:
        """Get ready."""

    async def close(self) -> None:
        """Let go."""

    async def ping(self) -> None:
        """Do nothing: whoever has the answer knows that the process is ready."""

    async def idle(self, seconds: float) -> None:
        """Leave the loop alone for a while."""
        await asyncio.sleep(seconds)

    async def start_lag(self) -> None:
        """Begin to measure this loop, with what was imported out of the garbage collector's way.

        A full collection looks at every object, which takes 40 ms after the imports, whoever publishes.
        """
        gc.collect()
        gc.freeze()
        self._lag = LagMeter()
        self._lag.start()

    async def stop_lag(self) -> dict[str, float]:
        """End it and report."""
        return await self._lag.stop()
