"""Tasks that were assigned by message: nobody waits for an answer, and all rules of dispatched ones hold."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio as redis

from conductor.broker.records import record_key
from conductor.client import Conductor
from conductor.core.channels import ERRORS, RESPONSE, agent_channel
from conductor.core.dead_letters import DeadLetter
from conductor.core.enums import MessageType, Priority, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.messages import AgentMessage, TaskAssignmentPayload, TaskResultPayload
from conductor.core.models import TaskDefinition, TaskResult
from tests.broker.nodes.conftest import letters_of, task
from tests.support.agents import notes
from tests.support.buses import Inbox
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


@pytest.fixture
async def answers(conductor: Conductor) -> Inbox:
    inbox = Inbox()
    await conductor.bus.subscribe(RESPONSE, inbox)
    return inbox


async def assign(conductor: Conductor, node: AgentNode, order: TaskDefinition) -> AgentMessage:
    payload = TaskAssignmentPayload(task=order).model_dump(mode="json")
    message = AgentMessage(message_type=MessageType.TASK_ASSIGNMENT, sender_id="test", payload=payload)
    await conductor.bus.publish(agent_channel(node.agent_id), message)
    return message


async def the_end(conductor: Conductor, message: AgentMessage) -> tuple[TaskResult, DeadLetter]:
    """The stored result of a task that failed, and its one letter."""
    task_id = message.payload["task"]["task_id"]

    async def told() -> bool:
        with contextlib.suppress(AgentError):  # Nothing is known of it yet.
            return (await conductor.handle(message.message_id)).status() is TaskStatus.FAILED
        return False

    await wait_until(told, timeout=30)
    result = await conductor.state.get_task_result(task_id)
    assert result is not None
    assert result == await (await conductor.handle(message.message_id)).result(5)
    (letter,) = await letters_of(conductor, task_id)
    return result, letter


async def test_it_is_done_and_who_listens_for_answers_has_the_result(
    conductor: Conductor, agent: AgentNode, answers: Inbox
) -> None:
    order = task(say="hello")
    message = await assign(conductor, agent, order)
    (answer,) = await wait_until(lambda: answers_to(message, answers))
    assert answer.message_type is MessageType.TASK_RESULT
    result = TaskResultPayload.model_validate(answer.payload).result
    assert (result.status, result.output_data["echo"]) == (TaskStatus.COMPLETED, "hello")
    assert await conductor.state.get_task_result(order.task_id) == result
    assert await (await conductor.handle(message.message_id)).result(5) == result


@pytest.mark.parametrize("do", ["sleep", "spin"])
async def test_one_that_takes_too_long_is_kept(conductor: Conductor, devops: AgentNode, do: str) -> None:
    message = await assign(conductor, devops, task(do, None, timeout=1, seconds=60))
    result, letter = await the_end(conductor, message)
    assert (result.status, result.agent_id) == (TaskStatus.FAILED, devops.agent_id)
    assert "timed out after 1 s" in str(result.error_message)
    assert (letter.reason, letter.attempts, letter.agent_id) == ("time_limit", 1, devops.agent_id)


async def test_one_that_fails_with_a_passing_error_is_tried_again(
    conductor: Conductor, agent: AgentNode, answers: Inbox, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    message = await assign(conductor, agent, task("fail_with", code="LLM_TIMEOUT", times=1, log=log))
    (answer,) = await wait_until(lambda: answers_to(message, answers))
    result = await (await conductor.handle(message.message_id)).result(20)
    assert (result.status, result.output_data) == (TaskStatus.COMPLETED, {"attempts": 2})
    assert (len(notes(log)), answer.message_type) == (2, MessageType.TASK_RESULT)
    assert not await letters_of(conductor, result.task_id)


async def test_retries_that_are_used_up_end_in_a_dead_letter(
    conductor: Conductor, agent: AgentNode, answers: Inbox, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    message = await assign(conductor, agent, task("fail_with", code="TRANSIENT_ERROR", log=log))
    result, letter = await the_end(conductor, message)
    assert (result.error_message, len(notes(log))) == ("attempt 4", 4)
    assert (letter.reason, letter.attempts, letter.error_code) == ("retries_exhausted", 4, "TRANSIENT_ERROR")
    assert letter.first_failed_at < letter.last_failed_at
    (answer,) = await wait_until(lambda: answers_to(message, answers))
    assert (answer.message_type, answer.payload["error_message"]) == (MessageType.ERROR, "attempt 4")


async def test_one_that_kills_its_process_three_times_is_kept(
    conductor: Conductor, starting: Callable[..., AgentNode], farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    message = await assign(conductor, node, task("die", None, log=tmp_path / "log"))
    result, letter = await the_end(conductor, message)
    assert (letter.reason, letter.attempts, len(notes(tmp_path / "log"))) == ("worker_lost", 3, 3)
    assert (result.status, result.agent_id) == (TaskStatus.FAILED, node.agent_id)


async def test_another_error_is_escalated(conductor: Conductor, agent: AgentNode) -> None:
    escalated = Inbox()
    await conductor.bus.subscribe(ERRORS, escalated)
    message = await assign(conductor, agent, task("fail", say="the disk is full"))
    result, letter = await the_end(conductor, message)
    assert (letter.reason, letter.escalated) == ("rejected", True)
    assert letter.error_message == "ValueError: the disk is full"
    (told,) = await wait_until(lambda: escalated.messages)
    assert (told.priority, told.payload["task_id"]) == (Priority.CRITICAL, result.task_id)


async def test_a_bad_definition_is_kept_as_what_nobody_can_read(
    conductor: Conductor, agent: AgentNode
) -> None:
    order = task()
    task_id, payload = order.task_id, {"task": order.model_dump(mode="json") | {"name": ""}}
    message = AgentMessage(message_type=MessageType.TASK_ASSIGNMENT, sender_id="test", payload=payload)
    await conductor.bus.publish(agent_channel(agent.agent_id), message)
    (letter,) = await wait_until(lambda: letters_of(conductor, task_id))
    assert (letter.reason, letter.error_code) == ("undecodable", "INVALID_TASK")
    result = await wait_until(lambda: conductor.state.get_task_result(task_id))
    assert (result.status, result.error_message) == (TaskStatus.FAILED, letter.error_message)


async def test_a_replayed_letter_is_done(conductor: Conductor, agent: AgentNode, tmp_path: Path) -> None:
    message = await assign(conductor, agent, task("fail_with", code="NO_LUCK", times=1, log=tmp_path / "log"))
    failure, letter = await the_end(conductor, message)
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    result = await (await conductor.handle(message.message_id)).result(20)
    assert (result.task_id, result.status) == (failure.task_id, TaskStatus.COMPLETED)
    assert await conductor.state.get_task_result(failure.task_id) == result


async def test_a_failure_whose_process_died_before_it_sent_the_letter_gets_it_with_the_next_delivery(
    conductor: Conductor, agent: AgentNode, farm: Farm, store: redis.Redis, tmp_path: Path
) -> None:
    """What the process that died had done is put there by hand: the record of the failure, and no letter."""
    before, _ = await the_end(conductor, await assign(conductor, agent, task("judge")))
    order, run, letter_id = task(log=tmp_path / "log"), uuid.uuid4().hex, uuid.uuid4().hex
    payload = TaskAssignmentPayload(task=order).model_dump(mode="json")
    message = AgentMessage(message_type=MessageType.TASK_ASSIGNMENT, sender_id="test", payload=payload)
    mine = before.model_copy(update={"task_id": order.task_id}).model_dump(mode="json")
    error = {"exc_type": "TaskFailed", "exc_message": ["it is not good", mine], "exc_module": "conductor"}
    unfinished = {
        "letter": f"rejected 1 - 0 {letter_id}",
        "status": "FAILURE",
        "result": error,
        "task_id": message.message_id,
        "kwargs": {"run": run},
    }
    await store.set(record_key(message.message_id), json.dumps(unfinished))
    for _ in range(2):  # and only once, however often it is delivered
        await asyncio.to_thread(
            farm.app.send_task,
            "conductor.handle_message",
            [message.model_dump(mode="json")],
            {"agent_id": agent.agent_id, "reply_to": None, "run": run},
            task_id=message.message_id,
            queue=agent.worker_queue,
        )
    _, letter = await the_end(conductor, message)
    await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    assert [one.letter_id for one in await letters_of(conductor, order.task_id)] == [letter_id]
    assert (letter.letter_id, letter.reason, notes(tmp_path / "log")) == (letter_id, "rejected", [])


def answers_to(message: AgentMessage, inbox: Inbox) -> list[AgentMessage]:
    return [answer for answer in inbox.messages if answer.correlation_id == message.message_id]
