"""The share of the event loop's time that a bus takes before all others have had their turn."""

import asyncio
import time

#: Seconds in one round of the loop, for all callbacks and the reading of a bus together.
SLICE = 0.001


class Turn:
    """Tells those who share it when to yield; belongs to one loop.

    A callback that runs is never interrupted, and in each round everybody may handle one message.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = False
        self._until = 0.0

    def is_over(self) -> bool:
        """Whether this round's share is used up; the first to ask in a round begins it."""
        now = time.monotonic()
        if self._began:
            return now >= self._until
        self._began = True
        self._until = now + SLICE
        self._loop.call_soon(self._end)
        return False

    def _end(self) -> None:
        self._began = False
