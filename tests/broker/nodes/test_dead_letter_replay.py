"""A dead letter that is replayed is done by a node."""

import asyncio
import time
from pathlib import Path

import pytest
import redis.asyncio as redis

from conductor.broker.task_events import TaskEvents
from conductor.broker.task_message import SENT_AT
from conductor.client import Conductor
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.messages import AgentMessage
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.letters import put, request_letter, task_letter
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
async def _no_dead_letters(conductor: Conductor) -> None:
    await conductor.dead_letters.purge(all=True)


async def test_a_replayed_task_is_done_under_its_id(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task(say="again", log=tmp_path / "log")
    letter = task_letter(farm.addresses, order, agent.agent_id)
    put(farm.addresses.broker_url, letter)
    report = await conductor.dead_letters.replay(letter.letter_id)
    assert report.replayed == [letter.letter_id]
    result = await (await conductor.handle(order.task_id)).result(20)
    assert (result.task_id, result.status) == (order.task_id, TaskStatus.COMPLETED)
    assert await conductor.state.get_task_result(order.task_id) == result
    assert [note["task"] for note in notes(tmp_path / "log")] == [order.task_id]
    assert await conductor.dead_letters.count() == 0


async def test_a_task_that_failed_gets_a_new_result_that_everybody_finds(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go", timeout=1, log=tmp_path / "log")
    await (await conductor.dispatch(order, agent.agent_id)).result(20)
    letter = task_letter(farm.addresses, order, agent.agent_id)
    put(farm.addresses.broker_url, letter)
    async with Conductor(farm.config) as elsewhere:
        assert (await elsewhere.handle(order.task_id)).status() is TaskStatus.FAILED
        (tmp_path / "go").touch()
        await elsewhere.dead_letters.replay(letter.letter_id)
        for handle in (await elsewhere.handle(order.task_id), await conductor.handle(order.task_id)):
            assert (await handle.result(20)).status is TaskStatus.COMPLETED
    assert len(notes(tmp_path / "log")) == 2


async def test_a_replayed_task_of_an_agent_that_is_still_not_there_dies_again(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    order = task()
    nobody = f"nobody-{order.task_id}"
    await (await conductor.dispatch(order, nobody)).result(20)
    first = await conductor.dead_letters.get(order.task_id)
    assert first is not None
    async with redis.Redis.from_url(farm.addresses.redis_url) as store:
        # As a node does some time after it has put aside all that waited.
        await store.zrem("conductor:awaited", nobody)
        await store.hdel("conductor:awaited_at", nobody)
    assert (await conductor.dead_letters.replay(order.task_id)).replayed == [first.letter_id]
    result = await (await conductor.handle(order.task_id)).result(20)
    (second,) = [one for one in await conductor.dead_letters.list() if one.task_id == order.task_id]
    assert (result.status, second.reason) == (TaskStatus.FAILED, "unknown_agent")
    assert second.letter_id != first.letter_id


async def test_a_replayed_task_that_waits_can_be_cancelled(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    order = task(log=tmp_path / "log")
    letter = task_letter(farm.addresses, order, agent.agent_id)
    put(farm.addresses.broker_url, letter)
    await conductor.dead_letters.replay(letter.letter_id)
    handle = await conductor.handle(order.task_id)
    assert handle.status() is TaskStatus.PENDING
    assert await handle.cancel()
    assert (await handle.result(20)).status is TaskStatus.SKIPPED
    (tmp_path / "go").touch()
    await busy.result(20)
    await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    assert notes(tmp_path / "log") == []


async def test_a_replayed_task_has_waited_since_its_replay(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    order = task()
    letter = task_letter(farm.addresses, order, agent.agent_id)
    letter.headers[SENT_AT] = time.time() - 3600
    put(farm.addresses.broker_url, letter)
    events = TaskEvents(farm.app)
    events.start()
    try:
        await wait_until(lambda: events.error is None)
        await conductor.dead_letters.replay(letter.letter_id)
        waited = await wait_until(lambda: events.figures().waited["p95"])
    finally:
        await asyncio.to_thread(events.stop)
    assert waited < 1800


async def test_a_replayed_request_is_answered_anew(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    request = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="t", payload={"do": "echo", "log": str(log)}
    )
    letter = request_letter(farm.addresses, request, agent.agent_id)
    put(farm.addresses.broker_url, letter)
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    await wait_until(lambda: notes(log), timeout=20)
    assert [note["message"] for note in notes(log)] == [request.message_id]


async def test_many_replayed_tasks_are_each_done_once(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    orders = [task(log=tmp_path / "log") for _ in range(40)]
    put(
        farm.addresses.broker_url,
        *(task_letter(farm.addresses, order, agent.agent_id) for order in orders),
    )
    async with Conductor(farm.config) as other:
        reports = await asyncio.gather(
            conductor.dead_letters.replay(all=True), other.dead_letters.replay(all=True)
        )
        assert sum(len(report.replayed) for report in reports) == len(orders)
        handles = [await conductor.handle(order.task_id) for order in orders]
        results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert {result.status for result in results} == {TaskStatus.COMPLETED}
    assert sorted(note["task"] for note in notes(tmp_path / "log")) == sorted(o.task_id for o in orders)
