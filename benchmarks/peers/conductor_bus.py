"""Ours."""

from benchmarks.peers.base import TIMEOUT, BusPeer, Handler, answer
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.messages import AgentMessage


class ConductorPeer(BusPeer):
    """The bus as the README shows it."""

    async def open(self) -> None:
        """Connect."""
        self._bus = KombuMessageBus(self.url)
        await self._bus.connect()

    async def close(self) -> None:
        """Disconnect."""
        await self._bus.disconnect()

    async def subscribe(self, channel: str, handler: Handler) -> None:
        """Subscribe a coroutine function, as the bus wants it."""

        async def handle(message: AgentMessage) -> None:
            handler(message)

        await self._bus.subscribe(channel, handle)

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """Publish."""
        await self._bus.publish(channel, message)

    async def respond(self, channel: str) -> None:
        """Answer where everybody answers."""

        async def handle(message: AgentMessage) -> None:
            await self._bus.publish("conductor:response", answer(message))

        await self._bus.subscribe(channel, handle)

    async def request(self, channel: str, message: AgentMessage) -> AgentMessage:
        """Request."""
        return await self._bus.request(channel, message, timeout=TIMEOUT)
