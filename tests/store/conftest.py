"""State managers of both kinds, over a server that the whole run shares."""

import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from conductor.orchestration.state_manager import InMemoryStateManager, StateManager
from conductor.store.redis_state import RedisStateManager

SERVER = "CONDUCTOR_TEST_REDIS_URL"


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The shared Valkey, or the server a person wants to try the suite on."""
    return os.environ.get(SERVER) or str(request.getfixturevalue("valkey_url"))


@pytest.fixture
def prefix() -> str:
    """A key prefix that nobody else uses."""
    return f"test-{uuid.uuid4().hex}:"


@dataclass
class Pair:
    """Two connected views of one store: two managers over Redis, twice the same one in memory."""

    one: StateManager
    two: StateManager


@pytest.fixture(params=["memory", "redis"])
async def pair(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Pair]:
    if request.param == "memory":
        async with InMemoryStateManager() as manager:
            yield Pair(manager, manager)
        return
    url = request.getfixturevalue("redis_url")
    async with RedisStateManager(url, prefix) as one, RedisStateManager(url, prefix) as two:
        yield Pair(one, two)


@pytest.fixture
def manager(pair: Pair) -> StateManager:
    """One connected state manager of each kind."""
    return pair.one
