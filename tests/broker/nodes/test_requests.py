"""bus.request to an agent on a node."""

import asyncio
from pathlib import Path

import pytest
from celery.result import AsyncResult

from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.enums import MessageType, Priority, TaskStatus
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage, ErrorPayload, TaskAssignmentPayload, TaskResultPayload
from conductor.core.models import TaskDefinition
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


def question(**payload: object) -> AgentMessage:
    return AgentMessage(
        message_type=MessageType.FEEDBACK,
        sender_id="a-test",
        payload={name: str(v) if isinstance(v, Path) else v for name, v in payload.items()},
        priority=Priority.HIGH,
    )


def assignment(order: TaskDefinition) -> AgentMessage:
    payload = TaskAssignmentPayload(task=order).model_dump(mode="json")
    return AgentMessage(message_type=MessageType.TASK_ASSIGNMENT, sender_id="a-test", payload=payload)


async def test_the_answer_is_the_agents_and_kept_in_the_result_backend(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    asked = question(do="echo", say="hello")
    answer = await conductor.bus.request(agent_channel(agent.agent_id), asked, 20)
    assert answer.sender_id == agent.agent_id
    assert answer.payload["echo"] == "hello"
    assert (answer.correlation_id, answer.priority) == (asked.message_id, Priority.HIGH)
    record = AsyncResult(asked.message_id, app=farm.app)
    await wait_until(lambda: record.state == "SUCCESS")
    assert AgentMessage.model_validate(record.result) == answer
    assert record.name == "conductor.handle_message"


async def test_a_task_can_be_asked_for(conductor: Conductor, agent: AgentNode) -> None:
    order = task(say="hello")
    answer = await conductor.bus.request(agent_channel(agent.agent_id), assignment(order), 20)
    assert answer.message_type is MessageType.TASK_RESULT
    result = TaskResultPayload.model_validate(answer.payload).result
    assert (result.status, result.output_data["echo"]) == (TaskStatus.COMPLETED, "hello")
    assert await conductor.state.get_task_result(order.task_id) == result


async def test_a_request_that_expired_while_it_waited_is_never_run(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    await wait_until(lambda: busy.status() is TaskStatus.IN_PROGRESS)
    asked = question(do="echo", log=log)
    with pytest.raises(MessageBusError) as caught:
        await conductor.bus.request(agent_channel(agent.agent_id), asked, 0.5)
    assert caught.value.error_code == "REQUEST_TIMEOUT"
    (tmp_path / "go").touch()
    await busy.result(20)
    answer = await conductor.bus.request(agent_channel(agent.agent_id), question(do="echo", log=log), 20)
    # The agent heard both at once, as an event does, and was asked to answer only the second.
    assert answer.message_type is MessageType.FEEDBACK
    assert len(notes(log)) == 1
    record = AsyncResult(asked.message_id, app=farm.app)
    await wait_until(lambda: record.state == "REVOKED")


async def test_a_request_that_was_too_late_may_be_asked_again(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    """With the very same message, as a loop of retries does it; each asking is one run."""
    channel, log = agent_channel(agent.agent_id), tmp_path / "log"
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    await wait_until(lambda: busy.status() is TaskStatus.IN_PROGRESS)
    asked = question(do="echo", log=log)
    with pytest.raises(MessageBusError):
        await conductor.bus.request(channel, asked, 0.5)
    (tmp_path / "go").touch()
    await busy.result(20)
    for runs in (1, 2):
        answer = await conductor.bus.request(channel, asked, 20)
        assert answer.message_type is MessageType.FEEDBACK
        assert len(notes(log)) == runs


@pytest.mark.parametrize("kind", ["question", "assignment"])
async def test_an_agent_that_raises_answers_with_an_error_and_celery_has_the_traceback(
    conductor: Conductor, agent: AgentNode, farm: Farm, kind: str
) -> None:
    order = task("fail", say="the disk is full")
    asked = assignment(order) if kind == "assignment" else question(do="fail", say="the disk is full")
    answer = await conductor.bus.request(agent_channel(agent.agent_id), asked, 20)
    assert answer.message_type is MessageType.ERROR
    error = ErrorPayload.model_validate(answer.payload)
    assert (error.error_message, error.agent_id) == ("ValueError: the disk is full", agent.agent_id)
    assert error.task_id == (order.task_id if kind == "assignment" else None)
    assert "_do_fail" in str(error.traceback)
    record = AsyncResult(asked.message_id, app=farm.app)
    await wait_until(lambda: record.state == "FAILURE")
    assert "_do_fail" in record.traceback
    assert "ValueError: the disk is full" in record.traceback


async def test_an_agent_that_exits_has_failed_and_answers_the_next(
    conductor: Conductor, agent: AgentNode
) -> None:
    channel = agent_channel(agent.agent_id)
    answer = await conductor.bus.request(channel, question(do="exit"), 20)
    assert answer.message_type is MessageType.ERROR
    answer = await conductor.bus.request(channel, question(do="echo", say="here"), 20)
    assert answer.payload["echo"] == "here"


async def test_no_answer_is_an_error_answer(conductor: Conductor, agent: AgentNode) -> None:
    answer = await conductor.bus.request(agent_channel(agent.agent_id), question(), 20)
    assert answer.message_type is MessageType.ERROR
    assert ErrorPayload.model_validate(answer.payload).error_code == "NO_RESPONSE"


async def test_a_task_asked_for_has_its_time_limit(conductor: Conductor, agent: AgentNode) -> None:
    order = task("sleep", seconds=50, timeout=1)
    answer = await conductor.bus.request(agent_channel(agent.agent_id), assignment(order), 20)
    assert answer.message_type is MessageType.ERROR
    assert "timed out after 1 s" in answer.payload["error_message"]
    result = await conductor.state.get_task_result(order.task_id)
    assert result is not None
    assert result.status is TaskStatus.FAILED


async def test_a_hundred_requests_at_once_are_answered_one_after_the_other(
    conductor: Conductor, agent: AgentNode
) -> None:
    channel = agent_channel(agent.agent_id)
    asked = [conductor.bus.request(channel, question(do="echo", say=number), 60) for number in range(100)]
    answers = await asyncio.gather(*asked)
    assert [answer.payload["echo"] for answer in answers] == list(range(100))
