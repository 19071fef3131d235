"""Policies over real nodes, which know nothing of them."""

import asyncio
import uuid
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import PolicyViolationError
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


def limited(farm: Farm, number: int) -> Conductor:
    config = farm.config.model_copy(deep=True)
    config.redis.key_prefix = f"test-{uuid.uuid4().hex}:"
    settings = config.model_dump() | {
        "policies": [{"agent_type_concurrency": {"limits": {"coding": number}}}]
    }
    return Conductor(type(config)(**settings))


@pytest.mark.parametrize("ending", ["wait_for_file", "fail", "exit"])
async def test_a_place_is_free_when_a_node_has_ended_the_task_in_whatever_way(
    farm: Farm, agent: AgentNode, tmp_path: Path, ending: str
) -> None:
    async with limited(farm, 1) as ours:
        log, go = tmp_path / "log", tmp_path / "go"
        first = await ours.dispatch(task("wait_for_file", file=go, log=log), agent.agent_id)
        await wait_until(lambda: notes(log), timeout=20)
        with pytest.raises(PolicyViolationError):
            await ours.dispatch(task())
        go.touch()
        assert (await first.result(20)).status is TaskStatus.COMPLETED
        second = await ours.dispatch(task(ending, file=go, seconds=0), agent.agent_id, wait=30)
        third = await ours.dispatch(task(), wait=60)
        before, after = await second.result(5), await third.result(30)
        assert before.status is (TaskStatus.COMPLETED if ending == "wait_for_file" else TaskStatus.FAILED)
        assert after.status is TaskStatus.COMPLETED
        assert before.completed_at is not None
        assert before.completed_at <= after.started_at


async def test_what_waits_is_done_two_at_a_time(
    farm: Farm, agent: AgentNode, other: AgentNode, tmp_path: Path
) -> None:
    async with limited(farm, 2) as ours, limited(farm, 1) as nobody:
        log = tmp_path / "log"
        orders = [task("sleep", seconds=0.1, log=log) for _ in range(6)]
        handles = await asyncio.gather(*(ours.dispatch(order, wait=60) for order in orders))
        results = await asyncio.gather(*(handle.result(30) for handle in handles))
        assert {result.status for result in results} == {TaskStatus.COMPLETED}
        times = sorted((result.started_at, result.completed_at) for result in results)
        for number, (began, _) in enumerate(times[2:], 2):
            under_way = [end for _, end in times[:number] if end is not None and end > began]
            assert len(under_way) < 2
        # Limits are by key prefix: this one counts nothing of the other's.
        await (await nobody.dispatch(task(assigned_to=AgentType.CODING))).result(30)
