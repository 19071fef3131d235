"""Nodes in a virtual host of RabbitMQ whose queues are quorum queues by default."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.broker.addresses import Addresses
from conductor.client import Conductor
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.broker.nodes.conftest import SETTINGS, task
from tests.support import rabbitmq
from tests.support.agents import notes
from tests.support.nodes import Farm
from tests.support.waiting import wait_until


@pytest.fixture
def quorum_farm(valkey_url: str, tmp_path: Path) -> Iterator[Farm]:
    if shutil.which("rabbitmqctl") is None or (reason := rabbitmq.absence()):
        pytest.skip(f"RabbitMQ with rabbitmqctl: {reason if shutil.which('rabbitmqctl') else 'absent'}")
    with rabbitmq.virtual_host(default_queue_type="quorum") as url:
        farm = Farm(Addresses(url, f"{valkey_url.rpartition('/')[0]}/6"), tmp_path, SETTINGS)
        yield farm
        farm.teardown()


async def test_a_workflow_ends_although_a_node_is_killed(quorum_farm: Farm, tmp_path: Path) -> None:
    nodes = [quorum_farm.start("SecondAgent"), quorum_farm.start("SecondAgent")]
    quorum_farm.setup(*nodes)
    log, go = tmp_path / "log", tmp_path / "go"
    orders = [task("wait_for_file", AgentType.REVIEW, file=go, log=log), task("echo", AgentType.REVIEW)]
    async with Conductor(quorum_farm.config) as conductor:
        engine = WorkflowEngine(conductor, conductor.state)
        run = asyncio.create_task(
            engine.run_workflow(WorkflowDefinition(name="on a quorum host", tasks=orders))
        )
        (first,) = await wait_until(lambda: notes(log), timeout=60)
        next(node for node in nodes if node.agent_id == first["agent"]).kill(
            "SIGKILL", reload_container=False
        )
        await wait_until(lambda: len(notes(log)) == 2, timeout=60)
        go.touch()
        state = await asyncio.wait_for(run, 60)
    results = [state.task_results[order.task_id].status for order in orders]
    assert results == [TaskStatus.COMPLETED, TaskStatus.COMPLETED]
    assert notes(log)[1]["agent"] != first["agent"]
    kinds = dict(rabbitmq.list_objects("queues", quorum_farm.addresses.broker_url, "name", "type"))
    assert kinds["conductor.type.review"] == "classic"
