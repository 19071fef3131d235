"""A workflow whose engine dies again and again is carried to its end, with every task done once."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from conductor.client import Conductor
from conductor.core.channels import workflow_channel
from conductor.core.enums import AgentType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import WorkflowError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition, WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until
from tests.support.workflow_process import ALL_KINDS, LEASE_LOST, LEASE_SECONDS, start_engine

pytestmark = pytest.mark.usefixtures("agent")


class Engines:
    """Engines in processes of their own, on the servers of a farm."""

    def __init__(self, farm: Farm, deaths: Path) -> None:
        self.settings = farm.config.model_dump(include={"broker_url", "redis"}, exclude_none=True)
        self.deaths = deaths
        self.started: list[BaseProcess] = []

    def start(self, definition: WorkflowDefinition, *kinds: str) -> BaseProcess:
        process = start_engine(self.settings, definition, self.deaths, kinds)
        self.started.append(process)
        return process

    async def run(self, definition: WorkflowDefinition, *kinds: str) -> int | None:
        """Run one to its end and give its exit code."""
        process = self.start(definition, *kinds)
        await asyncio.to_thread(process.join, 60)
        return process.exitcode


@pytest.fixture
def engines(farm: Farm, tmp_path: Path) -> Iterator[Engines]:
    made = Engines(farm, tmp_path / "deaths")
    yield made
    for process in made.started:
        process.kill()
        process.join()


def workflow(*tasks: TaskDefinition) -> WorkflowDefinition:
    return WorkflowDefinition(name="flow", workflow_id=f"flow-{uuid.uuid4().hex}", tasks=list(tasks))


def twelve_tasks(log: Path) -> WorkflowDefinition:
    """Eight tasks as a graph, then four in a row, the second of which uses the output of the first."""
    needs = {2: [1], 3: [1], 4: [2, 3], 5: [1], 6: [4], 7: [4, 5], 8: [6, 7]}
    orders = {number: {"do": "sleep", "seconds": 0.1} for number in range(1, 13, 2)}
    orders[10] = {"do": "echo", "say": "${tasks.t9.slept}"}
    tasks = [
        TaskDefinition(
            name=f"t{number}",
            task_id=f"t{number}-{uuid.uuid4().hex[:8]}",
            assigned_to=AgentType.CODING if number <= 8 else AgentType.DEVOPS,
            depends_on=[f"t{need}" for need in needs.get(number, [])],
            input_data={"log": str(log), **orders.get(number, {})},
        )
        for number in range(1, 13)
    ]
    return workflow(*tasks)


async def test_killed_at_every_step_the_run_completes_every_task_ran_once_and_every_step_was_published(
    engines: Engines, conductor: Conductor, farm: Farm, tmp_path: Path
) -> None:
    on_valkey = farm.addresses.broker_url.startswith("redis")
    kinds = ALL_KINDS if on_valkey else ("before sending", "after sending", "before filing")
    definition, log = twelve_tasks(tmp_path / "log"), tmp_path / "log"
    published = await listen(conductor, definition)
    codes = []
    while not codes or codes[-1] == -signal.SIGKILL:
        codes.append(await engines.run(definition, *kinds))
    deaths = engines.deaths.read_text().splitlines()
    assert codes == [-signal.SIGKILL] * len(deaths) + [0]
    # Where two are sent at once, the death after the first is one after the second as well.
    for kind in ("before sending", "before filing"):
        assert {f"{kind} {one.task_id}" for one in definition.tasks} <= set(deaths)
    final = await conductor.state.get_workflow_state(definition.workflow_id)
    assert final is not None
    assert (final.status, final.completed_task_count, final.error_log) == (TaskStatus.COMPLETED, 12, [])
    assert [entry["completed_count"] for entry in final.phase_history] == [8, 4, 0]
    assert sorted(note["task"] for note in notes(log)) == sorted(one.task_id for one in definition.tasks)
    assert final.task_results[definition.tasks[9].task_id].output_data["echo"] == 0.1
    events = {(one["event"], one.get("task_id") or one["phase"]) for one in published}
    assert events >= {
        ("workflow_started", "development"),
        ("workflow_ended", "monitoring"),
        *((event, phase) for event in ("phase_started", "phase_ended") for phase in WorkflowPhase),
        *((event, one.task_id) for event in ("task_started", "task_ended") for one in definition.tasks),
    }
    once = [one for one in published if not one.get("repeated")]
    assert [one["event"] for one in once].count("workflow_ended") <= 1


async def test_what_a_dead_engine_had_reserved_is_taken_over(engines: Engines, conductor: Conductor) -> None:
    names = [f"{kind}-{uuid.uuid4().hex}" for kind in ("budget", "slots")]
    engines.settings["policies"] = [
        {"budget": {"limit": 10, "name": names[0]}},
        {"agent_type_concurrency": {"limits": {"coding": 1}, "name": names[1]}},
    ]
    definition = workflow(*(task().model_copy(update={"metadata": {"cost": 5}}) for _ in range(2)))
    kinds = ("before dispatching", "before sending", "after sending")
    codes = [await engines.run(definition, *kinds) for _ in range(7)]
    assert codes == [-signal.SIGKILL] * 6 + [0]
    final = await conductor.state.get_workflow_state(definition.workflow_id)
    assert final is not None
    assert (final.completed_task_count, final.error_log) == (2, [])


async def test_a_task_of_another_workflow_that_has_the_same_id_is_not_taken_for_the_own_one(
    engines: Engines, conductor: Conductor, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first, shared = task(log=log), task(say="mine", log=log)
    mine = workflow(first, shared)
    say_theirs = shared.input_data | {"say": "theirs"}
    theirs = workflow(shared.model_copy(update={"input_data": say_theirs}))
    assert await engines.run(mine, "result of") == -signal.SIGKILL
    engine = WorkflowEngine(conductor, conductor.state, lease_seconds=LEASE_SECONDS)
    assert (await engine.run_workflow(theirs)).completed_task_count == 1
    final = await engine.resume_workflow(mine.workflow_id)
    assert final.task_results[shared.task_id].output_data["echo"] == "mine"
    assert len(notes(log)) == 3


async def test_a_workflow_is_not_taken_for_one_whose_id_begins_like_its_own(
    conductor: Conductor, tmp_path: Path
) -> None:
    one = workflow(task(say="mine"))
    other = one.model_copy(update={"workflow_id": f"{one.workflow_id}:x"})
    engine = WorkflowEngine(conductor, conductor.state)
    await engine.run_workflow(other)
    (order,) = one.tasks
    handed_out = order.model_copy(update={"metadata": {"workflow_id": one.workflow_id}})
    assert await conductor.revoke_task(handed_out) is None
    assert (await conductor.resume_task(handed_out)).output_data["echo"] == "mine"


async def listen(conductor: Conductor, definition: WorkflowDefinition) -> list[dict[str, Any]]:
    published: list[dict[str, Any]] = []

    async def hear(message: AgentMessage) -> None:
        if "event" in message.payload:
            published.append(message.payload)

    await conductor.bus.subscribe(workflow_channel(definition.workflow_id), hear)
    return published


async def test_a_task_that_waited_while_its_engine_died_runs_once(
    engines: Engines, conductor: Conductor, devops: AgentNode, tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    blocker = await conductor.dispatch(task("wait_for_file", file=go, log=log), devops.agent_id)
    await wait_until(lambda: notes(log))
    definition = workflow(task("echo", AgentType.DEVOPS, log=log))
    assert await engines.run(definition, "after sending") == -signal.SIGKILL
    second = engines.start(definition)
    lease = f"workflow:{definition.workflow_id}"
    before = await conductor.state.lease_owner(lease)
    await wait_until(lambda: _changed(conductor, lease, before))
    go.touch()
    await blocker.result(20)
    await asyncio.to_thread(second.join, 30)
    assert second.exitcode == 0
    # Both messages have been taken from the queue when a later one is done.
    last = await conductor.dispatch(task("echo", AgentType.DEVOPS))
    await last.result(20)
    assert [note["task"] for note in notes(log)] == [blocker.task_id, definition.tasks[0].task_id]


async def test_an_engine_that_stood_still_gives_way_and_its_task_goes_on(
    engines: Engines, conductor: Conductor, tmp_path: Path
) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    definition = workflow(task("wait_for_file", file=go, log=log), task(log=log))
    first = engines.start(definition)
    await wait_until(lambda: notes(log))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    second = engines.start(definition)
    lease = f"workflow:{definition.workflow_id}"
    before = await conductor.state.lease_owner(lease)
    await wait_until(lambda: _changed(conductor, lease, before))
    os.kill(first.pid, signal.SIGCONT)
    await asyncio.to_thread(first.join, 30)
    assert first.exitcode == LEASE_LOST
    go.touch()
    await asyncio.to_thread(second.join, 30)
    assert second.exitcode == 0
    final = await conductor.state.get_workflow_state(definition.workflow_id)
    assert final is not None
    assert final.completed_task_count == 2
    assert sorted(note["task"] for note in notes(log)) == sorted(one.task_id for one in definition.tasks)


async def _changed(conductor: Conductor, lease: str, before: str | None) -> bool:
    return await conductor.state.lease_owner(lease) not in (None, before)


@pytest.mark.parametrize("lives", [True, False])
async def test_cancelling_revokes_what_runs_whether_its_engine_lives_or_not(
    engines: Engines, conductor: Conductor, agent: AgentNode, other: AgentNode, tmp_path: Path, lives: bool
) -> None:
    log = tmp_path / "log"
    definition = workflow(
        task(log=log), task("wait_for_file", file=tmp_path / "never", log=log), task(log=log)
    )
    process = engines.start(definition)
    await wait_until(lambda: len(notes(log)) == 2)
    if not lives:
        process.kill()
        process.join()
    engine = WorkflowEngine(conductor, conductor.state, lease_seconds=LEASE_SECONDS)
    final = await engine.cancel_workflow(definition.workflow_id)
    assert (final.status, final.metadata["outcome"]) == (TaskStatus.FAILED, "cancelled")
    assert [final.task_results[one.task_id].status for one in definition.tasks] == [
        TaskStatus.COMPLETED,
        TaskStatus.SKIPPED,
        TaskStatus.SKIPPED,
    ]
    running = await conductor.handle(definition.tasks[1].task_id)
    assert (await running.result(20)).status is TaskStatus.SKIPPED
    if lives:
        await asyncio.to_thread(process.join, 30)
        assert process.exitcode == 0
    assert len(notes(log)) == 2


async def test_a_task_that_ended_before_its_cancelling_was_filed_is_kept(
    engines: Engines, conductor: Conductor, tmp_path: Path
) -> None:
    definition = workflow(task(log=tmp_path / "log"), task(log=tmp_path / "log"))
    assert await engines.run(definition, "result of") == -signal.SIGKILL
    engine = WorkflowEngine(conductor, conductor.state, lease_seconds=LEASE_SECONDS)
    final = await engine.cancel_workflow(definition.workflow_id)
    statuses = [final.task_results[one.task_id].status for one in definition.tasks]
    assert statuses == [TaskStatus.COMPLETED, TaskStatus.SKIPPED]


async def test_another_workflow_with_the_same_task_ids_is_left_alone(
    conductor: Conductor, tmp_path: Path
) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    mine = workflow(task("wait_for_file", file=go, log=log))
    theirs = mine.model_copy(update={"workflow_id": f"other-{uuid.uuid4().hex}"})
    engine = WorkflowEngine(conductor, conductor.state)
    running = asyncio.create_task(engine.run_workflow(mine))
    await wait_until(lambda: notes(log))
    refused = await engine.run_workflow(theirs)
    assert refused.error_log[0]["error_code"] == "TASK_ALREADY_DISPATCHED"
    go.touch()
    assert (await running).completed_task_count == 1


async def test_a_run_in_hand_cannot_be_run_twice(
    engines: Engines, conductor: Conductor, tmp_path: Path
) -> None:
    definition = workflow(task("wait_for_file", file=tmp_path / "go", log=tmp_path / "log"))
    process = engines.start(definition)
    await wait_until(lambda: notes(tmp_path / "log"))
    with pytest.raises(WorkflowError) as caught:
        await WorkflowEngine(conductor, conductor.state, lease_seconds=0.2).run_workflow(definition)
    assert caught.value.error_code == "WORKFLOW_RUNNING"
    (tmp_path / "go").touch()
    await asyncio.to_thread(process.join, 30)
    assert process.exitcode == 0
