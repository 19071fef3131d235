"""The implementations of the message bus, for the contract's tests."""

from collections.abc import AsyncIterator, Callable

import pytest

from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus

BusMaker = Callable[[], MessageBus]


@pytest.fixture(params=["memory", "valkey", "rabbitmq"])
def make_bus(request: pytest.FixtureRequest) -> BusMaker:
    if request.param == "memory":
        return InMemoryMessageBus
    from conductor.broker.kombu_bus import KombuMessageBus

    url = request.getfixturevalue(f"{request.param}_url")
    return lambda: KombuMessageBus(url)


@pytest.fixture
async def bus(make_bus: BusMaker) -> AsyncIterator[MessageBus]:
    async with make_bus() as bus:
        yield bus
