"""Nodes that come and go while a workflow runs."""

import asyncio
from pathlib import Path

from conductor.client import Conductor
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import Farm, run_celery
from tests.support.waiting import wait_until

TASKS = 40


async def test_nodes_that_are_added_take_tasks_and_one_that_is_ended_loses_none(
    farm: Farm, conductor: Conductor, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = farm.start("ThirdAgent")
    farm.setup(first)
    steps = [
        task("sleep", AgentType.TEST_DATA, seconds=0.2, log=log).model_copy(update={"name": f"step {number}"})
        for number in range(TASKS)
    ]
    engine = WorkflowEngine(conductor, conductor.state)
    running = asyncio.create_task(engine.run_workflow(WorkflowDefinition(name="many", tasks=steps)))
    await wait_until(lambda: notes(log), timeout=60)

    added = [farm.start("ThirdAgent"), farm.start("ThirdAgent")]
    await asyncio.to_thread(farm.setup, *added)

    def busy() -> bool:
        return {node.agent_id for node in (first, *added)} <= {note["agent"] for note in notes(log)}

    await wait_until(busy, timeout=60)
    shutdown = ["control", "shutdown", "-d", first.hostname()]
    # A node that ends does not answer, of which Celery complains.
    await asyncio.to_thread(run_celery, *shutdown, environment=farm.environment())
    state = await asyncio.wait_for(running, 120)
    assert {result.status for result in state.task_results.values()} == {TaskStatus.COMPLETED}
    assert sorted(note["task"] for note in notes(log)) == sorted(step.task_id for step in steps)
    await wait_until(lambda: first.container.status == "exited", timeout=60)
