"""What a peer of the message benchmarks must be able to do."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from benchmarks.load import make_message
from conductor.core.enums import MessageType
from conductor.core.messages import AgentMessage

Handler = Callable[[AgentMessage], None]
TIMEOUT = 30.0


def answer(message: AgentMessage) -> AgentMessage:
    """Answer a request with its own payload."""
    return message.create_response("benchmark-responder", MessageType.TASK_RESULT, message.payload)


class BusPeer(ABC):
    """One process's connection; it takes one of the roles subscriber, publisher, responder and asker."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def subscribe(self, channel: str, handler: Handler) -> None:
        """Give every message of the channel, validated, to handler."""

    @abstractmethod
    async def publish(self, channel: str, message: AgentMessage) -> None:
        """Publish one message."""

    async def publish_many(self, channel: str, count: int, width: int) -> None:
        """Make, validate and publish the messages 0 to count - 1 from width coroutines."""
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await self.publish(channel, make_message(number))

        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(work())

    async def respond(self, channel: str) -> None:
        """Answer every request of the channel."""
        raise NotImplementedError

    async def request(self, channel: str, message: AgentMessage) -> AgentMessage:
        """Return the validated answer; an error after TIMEOUT seconds."""
        raise NotImplementedError
