"""A bus in a process of its own, told what to do over a pipe.

`BusProcess(url)` starts it; `call(name, **arguments)` runs one of the functions of `Worker` there.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.enums import MessageType
from conductor.core.messages import AgentMessage
from tests.support.buses import Inbox, a_message


class BusProcess:
    """A process with a connected bus; belongs to one event loop."""

    module = __name__

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, url: str, **options: Any) -> Self:
        """Start one and wait until its bus, which gets `options`, is connected."""
        command = [sys.executable, "-m", cls.module, url, json.dumps(options)]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self = cls(process)
        await self.call("ready")
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            await self.kill()

    async def call(self, name: str, **arguments: Any) -> Any:
        """Run a function of `Worker` and return what it returned."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout=90)
        assert line, f"the process ended while {name} ran"
        return json.loads(line)

    async def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def ended(self) -> None:
        """Wait until the process has ended."""
        await asyncio.wait_for(self._process.wait(), timeout=30)


class Worker:
    """What a process does when it is told."""

    def __init__(self, bus: KombuMessageBus) -> None:
        self._bus = bus
        self._inboxes: dict[str, Inbox] = {}

    async def ready(self) -> None:
        """Answer, which says that the bus is connected."""

    async def subscribe(self, channel: str) -> None:
        """Keep what comes on a channel."""
        inbox = self._inboxes[channel] = Inbox()
        await self._bus.subscribe(channel, inbox)

    async def received(self, channel: str) -> list[int]:
        """The numbers of what came on a channel."""
        return self._inboxes[channel].numbers

    async def counts(self) -> list[int]:
        """What the bus dropped, and what it refused."""
        return [self._bus.dropped_count, self._bus.invalid_count]

    async def publish(self, channel: str, first: int, count: int, width: int = 1) -> int:
        """Publish `count` messages, `width` at a time, and return the bus's count."""
        for start in range(first, first + count, width):
            numbers = range(start, min(start + width, first + count))
            await asyncio.gather(*(self._bus.publish(channel, a_message(number)) for number in numbers))
        return self._bus.published_count

    async def answer(self, channel: str) -> None:
        """Answer what comes on a channel through conductor:response, with the number plus one."""

        async def responder(message: AgentMessage) -> None:
            payload = {"number": message.payload["number"] + 1}
            await self._bus.publish(
                "conductor:response", message.create_response("other", MessageType.FEEDBACK, payload)
            )

        await self._bus.subscribe(channel, responder)


async def serve(make_worker: Callable[[KombuMessageBus], Worker]) -> None:
    """Connect to the URL that the command line names and do what is told until nobody tells any more."""
    async with KombuMessageBus(sys.argv[1], **json.loads(sys.argv[2])) as bus:
        worker = make_worker(bus)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            name, arguments = json.loads(line)
            result = await getattr(worker, name)(**arguments)
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(Worker))
