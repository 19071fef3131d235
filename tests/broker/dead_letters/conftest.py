"""The queue of dead letters of one broker."""

from collections.abc import AsyncIterator, Callable

import pytest
import redis

from conductor.broker.addresses import Addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.core.config import ConductorConfig
from tests.support.letters import empty

QueueMaker = Callable[..., DeadLetterQueue]


@pytest.fixture(params=["valkey", "rabbitmq"])
def addresses(request: pytest.FixtureRequest, valkey_url: str) -> Addresses:
    server = valkey_url.rpartition("/")[0]
    broker = f"{server}/5" if request.param == "valkey" else request.getfixturevalue("rabbitmq_url")
    empty(broker)
    return Addresses(broker, f"{server}/6")


@pytest.fixture
def url(addresses: Addresses) -> str:
    return addresses.broker_url


@pytest.fixture
async def make_queue(addresses: Addresses) -> AsyncIterator[QueueMaker]:
    made: list[DeadLetterQueue] = []

    def make(**options: float) -> DeadLetterQueue:
        made.append(DeadLetterQueue(ConductorConfig(), addresses.broker_url, addresses.redis_url, **options))
        return made[-1]

    yield make
    for queue in made:
        await queue.close()


@pytest.fixture
def queue(make_queue: QueueMaker) -> DeadLetterQueue:
    return make_queue()


@pytest.fixture
def records(addresses: Addresses) -> redis.Redis:
    return redis.Redis.from_url(addresses.redis_url)
