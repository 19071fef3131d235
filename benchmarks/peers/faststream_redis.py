"""FastStream on Redis channels: a handler with the Pydantic model, `broker.publish` and `broker.request`."""

from faststream.redis import RedisBroker

from benchmarks.peers.base import TIMEOUT, BusPeer, Handler, answer
from conductor.core.messages import AgentMessage


class FastStreamPeer(BusPeer):
    """The broker as its manual shows it, without its log line per message and with redis-py's limit."""

    max_connections = 100

    async def open(self) -> None:
        """Make the broker and connect."""
        self._broker = RedisBroker(self.url, logger=None, max_connections=self.max_connections)
        await self._broker.connect()

    async def close(self) -> None:
        """Stop the broker."""
        await self._broker.stop()

    async def subscribe(self, channel: str, handler: Handler) -> None:
        """Register a handler and start the broker."""

        @self._broker.subscriber(channel)
        async def handle(message: AgentMessage) -> None:
            handler(message)

        await self._broker.start()

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """Publish the model itself."""
        await self._broker.publish(message, channel=channel)

    async def respond(self, channel: str) -> None:
        """Register a handler that returns the answer."""

        @self._broker.subscriber(channel)
        async def handle(message: AgentMessage) -> AgentMessage:
            return answer(message)

        await self._broker.start()

    async def request(self, channel: str, message: AgentMessage) -> AgentMessage:
        """Ask, and validate the answer."""
        response = await self._broker.request(message, channel=channel, timeout=TIMEOUT)
        return AgentMessage.model_validate(await response.decode())


class WideFastStreamPeer(FastStreamPeer):
    """Every request waits on a connection of its own, so 1,000 in flight want more than 100 of them."""

    max_connections = 4096
