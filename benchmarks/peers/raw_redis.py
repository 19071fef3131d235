"""redis.asyncio by hand: PUB/SUB channels, and one reply channel per asking process."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from uuid import uuid4

import redis.asyncio

from benchmarks.load import make_message
from benchmarks.peers.base import TIMEOUT, BusPeer, Handler, answer
from conductor.core.messages import AgentMessage

BATCH = 100
_CONNECTIONS = 100


class RedisPeer(BusPeer):
    """Each publish is a command of its own; a pool holds up to 100 connections for concurrent ones."""

    async def open(self) -> None:
        """Make the client."""
        self._client = redis.asyncio.Redis(
            connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                self.url, max_connections=_CONNECTIONS, timeout=None
            )
        )
        self._pubsub = self._client.pubsub()
        self._reader: asyncio.Task[None] | None = None
        self._inbox: str | None = None
        self._pending: dict[str, asyncio.Future[AgentMessage]] = {}

    async def close(self) -> None:
        """End the reading and the connections."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        await self._pubsub.aclose()
        await self._client.aclose()

    async def subscribe(self, channel: str, handler: Handler) -> None:
        """Read the channel in a task."""

        async def handle(message: AgentMessage) -> None:
            handler(message)

        await self._read(channel, handle)

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """PUBLISH."""
        await self._client.publish(channel, message.model_dump_json())

    async def respond(self, channel: str) -> None:
        """Answer on the channel that the request names in its metadata."""

        async def handle(message: AgentMessage) -> None:
            await self.publish(message.metadata["reply_to"], answer(message))

        await self._read(channel, handle)

    async def request(self, channel: str, message: AgentMessage) -> AgentMessage:
        """Wait for the answer on this process's own channel."""
        if self._inbox is None:
            self._inbox = f"benchmark:inbox:{uuid4()}"
            await self._read(self._inbox, self._resolve)
        message.metadata["reply_to"] = self._inbox
        future = self._pending[message.message_id] = asyncio.get_running_loop().create_future()
        try:
            await self.publish(channel, message)
            async with asyncio.timeout(TIMEOUT):
                return await future
        finally:
            del self._pending[message.message_id]

    async def _resolve(self, message: AgentMessage) -> None:
        future = self._pending.get(message.correlation_id or "")
        if future is not None and not future.done():
            future.set_result(message)

    async def _read(self, channel: str, handle: Callable[[AgentMessage], Awaitable[None]]) -> None:
        await self._pubsub.subscribe(channel)
        self._reader = asyncio.create_task(self._listen(handle))

    async def _listen(self, handle: Callable[[AgentMessage], Awaitable[None]]) -> None:
        async for received in self._pubsub.listen():
            if received["type"] == "message":
                await handle(AgentMessage.model_validate_json(received["data"]))


class PipelinePeer(RedisPeer):
    """The publisher collects BATCH messages and sends them in one pipeline."""

    async def publish_many(self, channel: str, count: int, width: int) -> None:
        """Publish from one coroutine: more of them would only share what a pipeline saves."""
        for first in range(0, count, BATCH):
            pipeline = self._client.pipeline(transaction=False)
            for number in range(first, min(first + BATCH, count)):
                pipeline.publish(channel, make_message(number).model_dump_json())
            await pipeline.execute()
