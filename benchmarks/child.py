"""A measuring process: reads commands as JSON lines from standard input and writes their results.

`python -m benchmarks.child ROLE ARGUMENT...`; it ends when its standard input does.
"""

import asyncio
import importlib
import json
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from benchmarks.load import PROBE, Delivery, make_message
from benchmarks.peers import load_bus_peer
from benchmarks.role import Role
from conductor.core.messages import AgentMessage

if TYPE_CHECKING:
    from benchmarks.peers.base import BusPeer


class BusRole(Role):
    """A role with a connection to the bus."""

    def __init__(self, peer: str, url: str, channel: str) -> None:
        self.peer: BusPeer = load_bus_peer(peer)(url)
        self.channel = channel

    async def open(self) -> None:
        """Connect."""
        await self.peer.open()

    async def close(self) -> None:
        """Disconnect."""
        await self.peer.close()


class Subscriber(BusRole):
    """Counts what arrives."""

    async def open(self) -> None:
        """Connect and subscribe."""
        await super().open()
        self._delivery = Delivery()
        self._complete = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await self.peer.subscribe(self.channel, self._receive)

    async def probes(self) -> int:
        """Count the probes that arrived."""
        return self._delivery.probes

    async def expect(self, count: int) -> None:
        """Start over and wait for count messages."""
        self._complete.clear()
        self._delivery.expect(count)

    async def collect(self, within: float) -> dict[str, float]:
        """Report when all messages are there, or after so many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._complete.wait()
        except TimeoutError:
            pass
        return self._delivery.report()

    def _receive(self, message: AgentMessage) -> None:
        self._delivery.add(message, time.monotonic())
        if self._delivery.is_complete:
            # Some peers call from a thread.
            self._loop.call_soon_threadsafe(self._complete.set)


class Publisher(BusRole):
    """Publishes."""

    async def probe(self) -> None:
        """Publish a message that does not count."""
        await self.peer.publish(self.channel, make_message(PROBE))

    async def publish(self, count: int, width: int) -> float:
        """Publish count messages from width coroutines; return when it began (monotonic seconds)."""
        began = time.monotonic()
        await self.peer.publish_many(self.channel, count, width)
        return began


class Responder(BusRole):
    """Answers."""

    async def open(self) -> None:
        """Connect and answer."""
        await super().open()
        await self.peer.respond(self.channel)


class Asker(BusRole):
    """Requests, and checks every answer."""

    async def one_by_one(self, count: int) -> list[float]:
        """Return the seconds each of count requests took."""
        took = []
        for number in range(count):
            began = time.perf_counter()
            await self._ask(number)
            took.append(time.perf_counter() - began)
        return took

    async def in_flight(self, count: int, width: int) -> dict[str, Any]:
        """Make count requests, width at a time; tell seconds, answers and one error."""
        numbers = iter(range(count))
        errors: list[str] = []

        async def work() -> None:
            for number in numbers:
                try:
                    await self._ask(number)
                except Exception as error:  # noqa: BLE001  a peer may fail in its own way: it is the result
                    errors.append(f"{type(error).__name__}: {error}")

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(width)))
        return {
            "seconds": time.perf_counter() - began,
            "answered": count - len(errors),
            "error": errors[0][:200] if errors else None,
        }

    async def _ask(self, number: int) -> None:
        message = make_message(number)
        response = await self.peer.request(self.channel, message)
        if response.payload["number"] != number or response.correlation_id != message.message_id:
            raise RuntimeError(f"the answer to {number} is {response!r}")


ROLES: dict[str, type[Role] | str] = {
    "bystander": Role,
    "subscriber": Subscriber,
    "publisher": Publisher,
    "responder": Responder,
    "asker": Asker,
    "plain-celery": "benchmarks.peers.plain_celery:PlainCelery",
    "conductor-tasks": "benchmarks.peers.conductor_tasks:ConductorTasks",
    "raw-state": "benchmarks.peers.raw_state:RawState",
    "indexed-raw-state": "benchmarks.peers.raw_state:IndexedRawState",
    "conductor-state": "benchmarks.peers.conductor_state:ConductorState",
}


def _make_role(name: str, arguments: list[str]) -> Role:
    found = ROLES[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(importlib.import_module(module), attribute)
    return found(*arguments)


async def _serve(role: Role, results: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await role.open()
    try:
        while line := await reader.readline():
            command, arguments = json.loads(line)
            try:
                result: list[Any] = ["result", await getattr(role, command)(**arguments)]
            except Exception:  # noqa: BLE001  the parent raises it
                result = ["error", traceback.format_exc()]
            # Not sys.stdout: that is where libraries print.
            os.write(results, json.dumps(result).encode() + b"\n")
    finally:
        await role.close()


def main() -> None:
    """Keep standard output for the results, whatever a library prints."""
    results = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(_serve(_make_role(sys.argv[1], sys.argv[2:]), results))


if __name__ == "__main__":
    main()
