"""The implementations of the message bus, for the contract's tests."""

from collections.abc import AsyncIterator, Callable

import pytest

from conductor.broker.signing import configured_signer
from conductor.core.config import ConductorConfig
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus

SIGNED = ConductorConfig(signing={"keys": {"a": "key-" + "a" * 32}, "key_id": "a"})

BusMaker = Callable[[], MessageBus]


@pytest.fixture(params=["memory", "valkey", "rabbitmq", "signed valkey"])
def make_bus(request: pytest.FixtureRequest) -> BusMaker:
    if request.param == "memory":
        return InMemoryMessageBus
    from conductor.broker.kombu_bus import KombuMessageBus

    url = request.getfixturevalue(f"{request.param.split()[-1]}_url")
    signer = configured_signer(SIGNED) if "signed" in request.param else None
    return lambda: KombuMessageBus(url, signer=signer)


@pytest.fixture
async def bus(make_bus: BusMaker) -> AsyncIterator[MessageBus]:
    async with make_bus() as bus:
        yield bus
