"""Shared subscriptions of every implementation of the message bus, and members for them."""

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from tests.support.buses import Inbox

QUICK = RetryPolicy(max_retries=2, initial_delay=0.05, max_delay=0.1)

GroupBusMaker = Callable[..., MessageBus]


@pytest.fixture(params=["memory", "valkey", "rabbitmq"])
def make_bus(request: pytest.FixtureRequest) -> GroupBusMaker:
    if request.param == "memory":
        return lambda retry_policy=QUICK: InMemoryMessageBus(retry_policy=retry_policy)
    url = request.getfixturevalue(f"{request.param}_url")
    dedup_url = request.getfixturevalue("valkey_url")
    return lambda retry_policy=QUICK: KombuMessageBus(url, retry_policy=retry_policy, dedup_url=dedup_url)


@pytest.fixture
async def bus(make_bus: GroupBusMaker) -> AsyncIterator[MessageBus]:
    async with make_bus() as bus:
        yield bus


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


class Failing(Inbox):
    """A callback that keeps what it is given and fails the first times."""

    def __init__(self, error: BaseException, times: int = 1000) -> None:
        super().__init__()
        self._error = error
        self._left = times

    async def __call__(self, message: AgentMessage) -> None:
        await super().__call__(message)
        if self._left > 0:
            self._left -= 1
            raise self._error


def letters_about(inbox: Inbox, message: AgentMessage) -> list[dict[str, Any]]:
    facts = [announced.metadata["dead_letter"] for announced in inbox.messages]
    return [fact for fact in facts if fact["message_id"] == message.message_id]
