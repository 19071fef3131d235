"""Agents made of functions, on real nodes of both brokers."""

import asyncio
import json
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import AgentMessage, TaskAssignmentPayload
from conductor.core.models import TaskDefinition
from tests.support.function_agents import Length, Text, measure
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def node(farm: Farm) -> AgentNode:
    node = farm.start("measure", module="tests.support.function_agents")
    farm.setup(node)
    return node


async def progress_on(conductor: Conductor, channel: str) -> list[tuple[float, str]]:
    heard: list[tuple[float, str]] = []

    async def hear(message: AgentMessage) -> None:
        if message.message_type is MessageType.STATUS_UPDATE:
            heard.append((message.payload["progress_percent"], message.payload["message"]))

    await conductor.bus.subscribe(channel, hear)
    return heard


async def test_a_model_goes_in_and_a_model_comes_out(conductor: Conductor, node: AgentNode) -> None:
    returned = await measure.run(conductor, Text(text="hello"), agent_id=node.agent_id, timeout=30)
    assert returned == Length(length=5)
    assert await measure.run(conductor, {"text": "by type"}, timeout=30) == Length(length=7)


async def test_a_wrong_input_is_refused_by_the_node_with_the_field(
    conductor: Conductor, node: AgentNode
) -> None:
    task = TaskDefinition(name="t", input_data={"text": 5})
    result = await (await conductor.dispatch(task, node.agent_id)).result(30)
    assert result.status is TaskStatus.FAILED
    assert "text: 5 is not usable" in (result.error_message or "")
    with pytest.raises(AgentError) as caught:
        measure.output(result)
    assert caught.value.error_code == "TASK_VALIDATION_FAILED"


async def test_a_wrong_output_is_a_failed_result_with_the_field(
    conductor: Conductor, node: AgentNode
) -> None:
    with pytest.raises(AgentError, match="length: 'wrong' is not usable") as caught:
        await measure.run(conductor, Text(text="wrong"), agent_id=node.agent_id, timeout=30)
    assert caught.value.error_code == "INVALID_OUTPUT"


async def test_progress_is_heard_while_the_task_runs(
    conductor: Conductor, node: AgentNode, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    task = measure.task(Text(text="a", wait_for=go_on), metadata={"workflow_id": f"run-{node.agent_id}"})
    by_task = await progress_on(conductor, f"conductor:task:{task.task_id}")
    by_workflow = await progress_on(conductor, f"conductor:workflow:run-{node.agent_id}")
    handle = await conductor.dispatch(task, node.agent_id)
    await wait_until(lambda: by_task and by_workflow, timeout=30)
    assert by_task == by_workflow == [(40, "measuring a")]
    assert handle.status() is TaskStatus.IN_PROGRESS
    go_on.touch()
    assert measure.output(await handle.result(30)) == Length(length=1)
    await wait_until(lambda: len(by_task) == len(by_workflow) == 2)
    assert by_task[1] == by_workflow[1] == (90, "done")


async def test_a_task_that_came_by_message_reports_too(conductor: Conductor, node: AgentNode) -> None:
    task = measure.task(Text(text="b"))
    heard = await progress_on(conductor, f"conductor:task:{task.task_id}")
    message = AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT,
        sender_id="test",
        payload=TaskAssignmentPayload(task=task).model_dump(mode="json"),
    )
    answer = await conductor.bus.request(f"conductor:agent:{node.agent_id}", message, timeout=30)
    assert answer.payload["result"]["output_data"] == {"length": 1}
    await wait_until(lambda: heard == [(40, "measuring b"), (90, "done")])


async def test_a_task_whose_id_is_no_name_of_a_channel_is_done_all_the_same(
    conductor: Conductor, node: AgentNode
) -> None:
    task_id = f"{node.agent_id}: a task with spaces"
    returned = await measure.run(
        conductor, Text(text="x"), agent_id=node.agent_id, timeout=30, task_id=task_id
    )
    assert returned == Length(length=1)


async def test_all_lines_of_a_task_have_its_ids(conductor: Conductor, node: AgentNode) -> None:
    task = measure.task(Text(text="x"), metadata={"workflow_id": "w-1"})
    await (await conductor.dispatch(task, node.agent_id)).result(30)
    lines = [json.loads(line) for line in node.logs().splitlines()]
    ids = {"agent_id": node.agent_id, "task_id": task.task_id, "workflow_id": "w-1"}
    said = [line["event"] for line in lines if ids.items() <= line.items()]
    assert "this is my log" in said
    assert "this is a library" in said


async def test_what_nobody_waits_for_any_more_is_cancelled(
    conductor: Conductor, node: AgentNode, tmp_path: Path
) -> None:
    data, task_id = Text(text="x", wait_for=tmp_path / "never"), f"forsaken-{node.agent_id}"
    with pytest.raises(ConductorError) as caught:
        await measure.run(conductor, data, agent_id=node.agent_id, timeout=0.5, task_id=task_id)
    assert caught.value.error_code == "TASK_TIMEOUT"
    handle = await conductor.handle(task_id)
    assert (await handle.result(30)).status is TaskStatus.SKIPPED
    heard = await progress_on(conductor, f"conductor:task:{task_id}-2")
    running = asyncio.create_task(
        measure.run(conductor, data, agent_id=node.agent_id, task_id=f"{task_id}-2")
    )
    await wait_until(lambda: heard, timeout=30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    handle = await conductor.handle(f"{task_id}-2")
    assert (await handle.result(30)).status is TaskStatus.SKIPPED
