"""Celery clients that know the names of the tasks and nothing else of Conductor."""

import asyncio
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskResult
from tests.broker.nodes.conftest import letters_of, task
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


async def test_a_task_is_sent_and_its_result_awaited(agent: AgentNode, farm: Farm) -> None:
    order = task(say="hello")
    sent = farm.app.send_task(
        "conductor.execute_task", [order.model_dump(mode="json")], queue=agent.worker_queue
    )
    result = TaskResult.model_validate(await asyncio.to_thread(sent.get, timeout=20))
    assert (result.task_id, result.status) == (order.task_id, TaskStatus.COMPLETED)
    assert result.output_data["echo"] == "hello"


async def test_a_failure_is_raised_with_its_text(agent: AgentNode, farm: Farm) -> None:
    order = task("fail", say="the disk is full")
    sent = farm.app.send_task(
        "conductor.execute_task", kwargs={"task": order.model_dump(mode="json")}, queue=agent.worker_queue
    )
    with pytest.raises(Exception, match="the disk is full"):
        await asyncio.to_thread(sent.get, timeout=20)
    assert sent.state == "FAILURE"
    assert "ValueError: the disk is full" in sent.traceback


async def test_a_task_that_nobody_begins_in_time_becomes_a_dead_letter(
    agent: AgentNode, farm: Farm, conductor: Conductor, tmp_path: Path
) -> None:
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    order = task()
    arguments = [order.model_dump(mode="json")]
    sent = farm.app.send_task(
        "conductor.execute_task", arguments, task_id=order.task_id, queue=agent.worker_queue, expires=0.1
    )
    expiry = asyncio.get_running_loop().time() + 0.2
    await wait_until(lambda: asyncio.get_running_loop().time() > expiry)
    (tmp_path / "go").touch()
    await busy.result(20)
    (letter,) = await wait_until(lambda: letters_of(conductor, order.task_id))
    assert letter.reason == "expired"
    assert sent.state == "FAILURE"


async def test_a_message_is_sent_and_its_answer_awaited(agent: AgentNode, farm: Farm) -> None:
    asked = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="a-test", payload={"do": "echo", "say": 1}
    )
    sent = farm.app.send_task(
        "conductor.handle_message",
        kwargs={"message": asked.model_dump(mode="json"), "agent_id": agent.agent_id},
        queue=agent.worker_queue,
    )
    answer = AgentMessage.model_validate(await asyncio.to_thread(sent.get, timeout=20))
    assert (answer.correlation_id, answer.payload["echo"]) == (asked.message_id, 1)
