"""Policies over real nodes, which know nothing of them."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import PolicyViolationError
from conductor.core.models import TaskDefinition, WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
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


def under(farm: Farm, policy: str, **parameters: Any) -> Conductor:
    """A client with one policy, which nobody else uses."""
    settings = farm.config.model_dump(exclude_none=True)
    settings["policies"] = [{policy: parameters | {"name": f"{policy}-{uuid.uuid4().hex}"}}]
    return Conductor(ConductorConfig(**settings))


def graph(*tasks: TaskDefinition) -> WorkflowDefinition:
    first = task()
    tasks = tuple(one.model_copy(update={"depends_on": [first.task_id]}) for one in tasks)
    return WorkflowDefinition(name="graph", tasks=[first, *tasks])


async def test_the_tasks_of_a_workflow_wait_however_long_the_policies_want_them_to(
    farm: Farm, agent: AgentNode, other: AgentNode, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    definition = graph(*(task("sleep", seconds=0.5, timeout=1, log=log) for _ in range(4)))
    async with under(farm, "agent_type_concurrency", limits={"coding": 1}) as ours:
        final = await WorkflowEngine(ours, ours.state).run_workflow(definition)
    # The last has waited for longer than its time limit.
    assert (final.completed_task_count, final.error_log) == (5, [])
    assert len(notes(log)) == 4


async def test_ready_tasks_run_on_different_nodes_at_once(
    conductor: Conductor, agent: AgentNode, other: AgentNode, tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    definition = graph(*(task("wait_for_file", file=go, log=log) for _ in range(2)))
    running = asyncio.create_task(WorkflowEngine(conductor, conductor.state).run_workflow(definition))
    await wait_until(lambda: len(notes(log)) == 2, timeout=20)
    go.touch()
    final = await running
    assert final.completed_task_count == 3
    results = [final.task_results[one.task_id] for one in definition.tasks[1:]]
    assert {result.agent_id for result in results} == {agent.agent_id, other.agent_id}


async def test_a_task_that_the_budget_has_nothing_left_for_fails_at_once(
    farm: Farm, agent: AgentNode, other: AgentNode
) -> None:
    definition = graph(*(one.model_copy(update={"metadata": {"cost": 3}}) for one in (task(), task())))
    async with under(farm, "budget", limit=5) as ours:
        final = await WorkflowEngine(ours, ours.state).run_workflow(definition)
        assert (final.completed_task_count, final.failed_task_count) == (2, 1)
        (entry,) = final.error_log
        assert entry["error_code"] == "POLICY_VIOLATION"
        assert "of the budget of workflow" in entry["message"]
        # Nor does one wait that is dispatched by itself.
        costly = task().model_copy(update={"metadata": {"cost": 6, "workflow_id": definition.workflow_id}})
        with pytest.raises(PolicyViolationError) as caught:
            await ours.dispatch(costly, wait=3600)
        assert caught.value.details["waited_seconds"] < 60


async def test_a_workflow_that_takes_too_long_revokes_what_runs_and_what_waits(
    conductor: Conductor, agent: AgentNode, other: AgentNode, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    orders = [task("wait_for_file", file=tmp_path / "never", log=log) for _ in range(4)]
    definition = graph(*orders).model_copy(update={"timeout_seconds": 3.0})
    final = await WorkflowEngine(conductor, conductor.state).run_workflow(definition)
    assert final.error_log[-1]["error_code"] == "WORKFLOW_TIMEOUT"
    for one in definition.tasks[1:]:
        assert (await (await conductor.handle(one.task_id)).result(20)).status is TaskStatus.SKIPPED
    for node in (agent, other):
        await (await conductor.dispatch(task(), node.agent_id)).result(20)
    assert len(notes(log)) <= 2
