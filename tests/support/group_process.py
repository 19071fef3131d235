"""A member of a group in a process of its own; see `bus_process`."""

import asyncio
import os
import signal
from pathlib import Path

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.messages import AgentMessage
from tests.support.bus_process import BusProcess, Worker, serve


class GroupProcess(BusProcess):
    """A process whose bus has the members that it is told to have."""

    module = __name__


class _GroupWorker(Worker):
    def __init__(self, bus: KombuMessageBus) -> None:
        super().__init__(bus)
        self._records: list[tuple[int, int, bool]] = []

    async def member(
        self,
        channel: str,
        group: str,
        then: str = "return",
        deduplicate: float | None = None,
        log: str | None = None,
    ) -> None:
        """Be a member that keeps what comes and then returns, yields, hangs or dies.

        The numbers of what it has handled are written to the file `log`, which outlives a kill.
        """

        async def callback(message: AgentMessage) -> None:
            facts = message.metadata
            self._records.append((message.payload["number"], facts["attempt"], facts["redelivered"]))
            if then == "hang":
                await asyncio.Event().wait()
            if then == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if then == "yield":
                await asyncio.sleep(0.002)
            if log is not None:
                _append(Path(log), message.payload["number"])

        await self._bus.subscribe(channel, callback, group=group, deduplicate=deduplicate)

    async def records(self) -> list[tuple[int, int, bool]]:
        """What came: number, attempt, whether redelivered."""
        return self._records

    async def disconnect(self) -> None:
        """Disconnect the bus."""
        await self._bus.disconnect()


def _append(log: Path, number: int) -> None:
    with log.open("a") as file:
        file.write(f"{number}\n")


if __name__ == "__main__":
    asyncio.run(serve(_GroupWorker))
