"""What tests of the message bus share."""

import uuid
from typing import Any

from conductor.core.enums import MessageType, Priority
from conductor.core.messages import AgentMessage
from tests.support.waiting import wait_until


def unique(prefix: str) -> str:
    """A channel or id that no other test uses."""
    return f"{prefix}:{uuid.uuid4().hex}"


def a_message(number: int = 0, **changes: Any) -> AgentMessage:
    """A message that carries `number`."""
    fields: dict[str, Any] = {
        "message_type": MessageType.STATUS_UPDATE,
        "sender_id": "tester",
        "priority": Priority.MEDIUM,
        "payload": {"number": number},
    }
    return AgentMessage(**(fields | changes))


class Inbox:
    """A callback that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[AgentMessage] = []

    async def __call__(self, message: AgentMessage) -> None:
        self.messages.append(message)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the messages, in order of arrival."""
        return [message.payload["number"] for message in self.messages]

    async def has(self, *numbers: int) -> None:
        """Wait until exactly these numbers arrived, in this order."""
        await wait_until(lambda: len(self.messages) >= len(numbers))
        assert self.numbers == list(numbers)
