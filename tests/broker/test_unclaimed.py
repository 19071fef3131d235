"""Tasks for agents that nobody has ever seen."""

import uuid
from collections.abc import AsyncIterator

import pytest

from conductor.broker.unclaimed import MissingAgents
from conductor.store.redis_state import RedisStateManager


@pytest.fixture
async def missing(valkey_url: str) -> AsyncIterator[MissingAgents]:
    prefix = f"{uuid.uuid4().hex}:"
    async with RedisStateManager(valkey_url, key_prefix=prefix) as state:
        yield MissingAgents(state.link, prefix, seconds=0)


async def begin_to_wait(missing: MissingAgents, agent_id: str) -> None:
    await missing._link.run(["ZADD", missing.keys(None)[1], 1, agent_id])


async def test_an_agent_that_is_due_while_another_is_seen_to_is_found_by_the_next_look(
    missing: MissingAgents,
) -> None:
    await begin_to_wait(missing, "first")
    assert await missing.find() == ["first"]
    await begin_to_wait(missing, "second")
    await missing.done_with("first")
    assert await missing.find() == ["second"]
    assert await missing.find() == []


async def test_an_agent_whose_tasks_were_put_aside_is_not_looked_for_again(missing: MissingAgents) -> None:
    await begin_to_wait(missing, "gone")
    assert await missing.find() == ["gone"]
    await missing.done_with("gone")
    assert await missing._link.run(["ZCARD", missing.keys(None)[1]]) == 0
