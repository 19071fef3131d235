"""What becomes of the probes of a half-open breaker that end in another way than by their agent's word."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis.asyncio as redis

from conductor.broker.shared_breaker import PROBE_SLACK
from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.enums import AgentType, MessageType, TaskStatus
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage, TaskAssignmentPayload
from conductor.core.models import TaskDefinition
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

Starting = Callable[..., AgentNode]
BREAKER = "conductor:breaker:deploying"
SETTINGS = {
    "CONDUCTOR_ERRORS__BREAKER__FAILURE_THRESHOLD": "2",
    "CONDUCTOR_ERRORS__BREAKER__SUCCESS_THRESHOLD": "1",
}


@pytest.fixture
async def store(farm: Farm) -> AsyncIterator[redis.Redis]:
    client = redis.Redis.from_url(farm.addresses.redis_url, decode_responses=True)
    await client.delete(BREAKER)
    yield client
    await client.delete(BREAKER)
    await client.aclose()


@pytest.fixture
def node(farm: Farm, starting: Starting) -> AgentNode:
    node = starting("BreakableAgent", **SETTINGS)
    farm.setup(node)
    return node


async def half_open(store: redis.Redis) -> None:
    """The breaker opened long ago: the next task is a probe, and no other may go until it has ended."""
    await store.hset(BREAKER, "opened_at", "1")


async def probes(store: redis.Redis) -> list[str]:
    return [name for name in await store.hgetall(BREAKER) if name.startswith("probe:")]


async def _is_given_back(conductor: Conductor, node: AgentNode, store: redis.Redis) -> None:
    async def gone() -> bool:
        return not await probes(store)

    await wait_until(gone)
    result = await (await conductor.dispatch(task(), node.agent_id)).result(20)
    assert result.status is TaskStatus.COMPLETED
    assert not await store.exists(BREAKER)


async def test_a_probe_that_is_cancelled_and_killed_is_given_back(
    conductor: Conductor, node: AgentNode, store: redis.Redis, tmp_path: Path
) -> None:
    await half_open(store)
    handle = await conductor.dispatch(task("spin", None, log=tmp_path / "log"), node.agent_id)
    await wait_until(lambda: notes(tmp_path / "log"))
    (until,) = [int(await store.hget(BREAKER, name)) for name in await probes(store)]
    seconds, _ = await store.time()
    assert until / 1000 - seconds < 60 + 1.5 + PROBE_SLACK + 1
    assert await handle.cancel()
    assert (await handle.result(20)).status is TaskStatus.SKIPPED
    await _is_given_back(conductor, node, store)


async def test_a_probe_that_is_cancelled_while_its_node_is_dead_is_given_back(
    conductor: Conductor, node: AgentNode, farm: Farm, starting: Starting, store: redis.Redis, tmp_path: Path
) -> None:
    await half_open(store)
    order = task("wait_for_file", None, file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order, node.agent_id)
    await wait_until(lambda: notes(tmp_path / "log"))
    node.kill("SIGKILL", reload_container=False)
    assert await handle.cancel()
    farm.setup(starting("BreakableAgent", node.agent_id, **SETTINGS))
    assert (await handle.result(30)).status is TaskStatus.SKIPPED
    await _is_given_back(conductor, node, store)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_probe_that_was_assigned_by_message_and_is_cancelled_is_given_back(
    conductor: Conductor, node: AgentNode, store: redis.Redis, tmp_path: Path, asked: bool
) -> None:
    await half_open(store)
    message = assignment(task("wait_for_file", None, file=tmp_path / "go", log=tmp_path / "log"))
    asking = asyncio.create_task(_send(conductor, node, message, asked=asked))
    await wait_until(lambda: "pid" in str(notes(tmp_path / "log")))
    handle = await conductor.handle(message.message_id)
    assert await handle.cancel()
    assert (await handle.result(20)).status is TaskStatus.SKIPPED
    asking.cancel()
    await asyncio.wait({asking})
    await _is_given_back(conductor, node, store)


async def test_a_hard_limit_counts_for_the_breaker_of_the_agent_whatever_the_task_names(
    conductor: Conductor, node: AgentNode, store: redis.Redis
) -> None:
    await (await conductor.dispatch(task("spin", None, timeout=1), node.agent_id)).result(20)
    assert await store.hgetall(BREAKER) == {"failures": "1"}
    await half_open(store)
    await (await conductor.dispatch(task("spin", AgentType.CODING, timeout=1), node.agent_id)).result(20)
    found = await store.hgetall(BREAKER)
    assert (list(found), found["opened_at"] > "1") == (["opened_at"], True)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_hard_limit_of_what_was_assigned_by_message_counts_too(
    conductor: Conductor, node: AgentNode, store: redis.Redis, asked: bool
) -> None:
    await half_open(store)
    await _send(conductor, node, assignment(task("spin", None, timeout=1)), asked=asked)

    async def open_again() -> bool:
        found = await store.hgetall(BREAKER)
        return list(found) == ["opened_at"] and found["opened_at"] > "1"

    await wait_until(open_again)


def assignment(order: TaskDefinition) -> AgentMessage:
    payload = TaskAssignmentPayload(task=order).model_dump(mode="json")
    return AgentMessage(message_type=MessageType.TASK_ASSIGNMENT, sender_id="test", payload=payload)


async def _send(conductor: Conductor, node: AgentNode, message: AgentMessage, *, asked: bool) -> None:
    channel = agent_channel(node.agent_id)
    if not asked:
        await conductor.bus.publish(channel, message)
        return
    try:
        await conductor.bus.request(channel, message, 20)
    except MessageBusError as error:
        assert error.error_code == "REQUEST_TIMEOUT"  # noqa: PT017
