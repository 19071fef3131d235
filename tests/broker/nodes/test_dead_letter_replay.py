"""A dead letter that is replayed is done by a node."""

import asyncio
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.enums import TaskStatus
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.letters import put, task_letter
from tests.support.nodes import AgentNode, Farm


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


async def test_a_task_that_failed_on_a_node_gets_a_new_result_that_everybody_sees(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go", timeout=1, log=tmp_path / "log")
    handle = await conductor.dispatch(order, agent.agent_id)
    assert (await handle.result(20)).status is TaskStatus.FAILED
    letters = [
        letter for letter in await conductor.dead_letters.list() if letter.task_id == order.task_id
    ] or [task_letter(farm.addresses, order, agent.agent_id)]
    if not await conductor.dead_letters.count():
        put(farm.addresses.broker_url, *letters)
    (tmp_path / "go").touch()
    async with Conductor(farm.config) as elsewhere:
        old = await elsewhere.handle(order.task_id)
        assert old.status() is TaskStatus.FAILED
        await conductor.dead_letters.replay(letters[0].letter_id)
        new = await asyncio.gather(elsewhere.handle(order.task_id), conductor.handle(order.task_id))
        for handle in new:
            assert (await handle.result(20)).status is TaskStatus.COMPLETED
    assert len(notes(tmp_path / "log")) == 2


async def test_who_waits_already_when_it_is_replayed_gets_the_result(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    """The first run never ended here: its task died while it was in the queue of nobody."""
    order = task("wait_for_file", file=tmp_path / "go")
    letter = task_letter(farm.addresses, order, agent.agent_id)
    put(farm.addresses.broker_url, letter)
    await conductor.dead_letters.replay(order.task_id)
    waiting = asyncio.ensure_future((await conductor.handle(order.task_id)).result(20))
    (tmp_path / "go").touch()
    assert (await waiting).status is TaskStatus.COMPLETED


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
