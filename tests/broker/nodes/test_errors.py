"""What nodes do about tasks that fail, and what becomes of those that nobody can do."""

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
from celery.result import AsyncResult

from conductor.broker.records import record_key
from conductor.client import Conductor
from conductor.core.channels import DLQ, agent_channel
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.enums import AgentType, MessageType, Priority, TaskStatus
from conductor.core.exceptions import ConfigurationError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition
from tests.broker.nodes.conftest import echo, letters_of, task, the_letter
from tests.support.agents import notes
from tests.support.buses import Inbox
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

Starting = Callable[..., AgentNode]


@pytest.fixture
async def announced(conductor: Conductor) -> Inbox:
    inbox = Inbox()
    await conductor.bus.subscribe(DLQ, inbox)
    return inbox


def letter_told_of(message: AgentMessage) -> dict[str, Any]:
    """Give what an announcement says of its letter."""
    return message.metadata["dead_letter"]


async def test_a_retry_is_celerys_and_does_not_hold_up_the_node(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    order = task("fail_with", code="LLM_TIMEOUT", times=1, log=log)
    first = await conductor.dispatch(order, agent.agent_id)
    await wait_until(lambda: notes(log))
    second = await conductor.dispatch(task(log=log), agent.agent_id)
    assert (await second.result(20)).status is TaskStatus.COMPLETED
    result = await first.result(20)
    assert (result.status, result.output_data) == (TaskStatus.COMPLETED, {"attempts": 2})
    assert [note["task"] for note in notes(log)] == [first.task_id, second.task_id, first.task_id]
    assert AsyncResult(order.task_id, app=farm.app)._get_task_meta()["retries"] == 1
    state = await conductor.state.get_agent_state(agent.agent_id)
    assert state is not None
    assert order.task_id in state.completed_tasks
    assert order.task_id not in state.failed_tasks
    assert not await letters_of(conductor, order.task_id)


async def test_retries_that_are_used_up_end_in_a_dead_letter(
    conductor: Conductor, agent: AgentNode, tmp_path: Path, announced: Inbox, escalated: Inbox
) -> None:
    order = task("fail_with", code="TRANSIENT_ERROR", log=tmp_path / "log")
    order.metadata["workflow_id"] = "a-workflow"
    result = await (await conductor.dispatch(order, agent.agent_id)).result(30)
    letter = await the_letter(conductor, order.task_id)
    assert (result.status, result.error_message) == (TaskStatus.FAILED, "attempt 4")
    assert len(notes(tmp_path / "log")) == 4
    assert (letter.reason, letter.attempts, letter.error_code) == ("retries_exhausted", 4, "TRANSIENT_ERROR")
    assert (letter.agent_id, letter.agent_type, letter.queue) == (
        agent.agent_id,
        "coding",
        agent.worker_queue,
    )
    assert (letter.workflow_id, letter.error_type, letter.task_name) == (
        "a-workflow",
        "ConductorError",
        order.name,
    )
    assert "attempt 4" in (letter.traceback or "")
    assert letter.first_failed_at < letter.last_failed_at
    assert json.loads(letter.body)[0] == [order.model_dump(mode="json")]
    assert letter.headers["task"] == "conductor.execute_task"
    # Those of tasks of other tests may still come.
    (told,) = await wait_until(
        lambda: [one for one in map(letter_told_of, announced.messages) if one["task_id"] == order.task_id]
    )
    assert told["letter_id"] == letter.letter_id
    assert not escalated.messages


@pytest.mark.parametrize("name", ["n" * 70_000, "n" * 300_000, "\u754c" * 40_000])
async def test_a_task_with_a_very_long_name_ends_and_can_be_replayed(
    conductor: Conductor, agent: AgentNode, name: str
) -> None:
    order = task("fail", say=name).model_copy(update={"name": name})
    result = await (await conductor.dispatch(order, agent.agent_id)).result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (result.status, letter.task_name, letter.queue) == (TaskStatus.FAILED, name, agent.worker_queue)
    assert json.loads(letter.body)[0] == [order.model_dump(mode="json")]
    await echo(conductor, agent)
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    assert (await (await conductor.handle(order.task_id)).result(20)).status is TaskStatus.FAILED
    again = await the_letter(conductor, order.task_id)
    assert (again.letter_id != letter.letter_id, json.loads(again.body)[0]) == (
        True,
        json.loads(letter.body)[0],
    )


async def test_another_error_is_escalated_and_kept(
    conductor: Conductor, agent: AgentNode, escalated: Inbox
) -> None:
    order = task("fail", say="the disk is full")
    await (await conductor.dispatch(order, agent.agent_id)).result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (letter.reason, letter.escalated, letter.attempts) == ("rejected", True, 1)
    await wait_until(lambda: escalated.messages)
    (message,) = escalated.messages
    assert (message.priority, message.message_type) == (Priority.CRITICAL, MessageType.ERROR)
    assert message.payload["error_message"] == "ValueError: the disk is full"
    assert message.payload["task_id"] == order.task_id


async def test_letters_of_tasks_for_an_agent_by_its_id_are_found_by_its_type(
    conductor: Conductor, agent: AgentNode
) -> None:
    order = task("fail", None)
    await (await conductor.dispatch(order, agent.agent_id)).result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (letter.agent_id, letter.agent_type) == (agent.agent_id, "coding")
    of_type = await conductor.dead_letters.list(agent="coding", limit=None)
    assert letter.letter_id in [one.letter_id for one in of_type]


async def test_what_an_agent_judges_is_kept_and_not_escalated(
    conductor: Conductor, agent: AgentNode, escalated: Inbox
) -> None:
    order = task("judge")
    result = await (await conductor.dispatch(order, agent.agent_id)).result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (result.error_message, letter.error_message) == ("it is not good", "it is not good")
    assert (letter.reason, letter.escalated) == ("rejected", False)
    await (await conductor.dispatch(task("fail"), agent.agent_id)).result(20)
    await wait_until(lambda: escalated.messages)
    assert order.task_id not in [message.payload["task_id"] for message in escalated.messages]


async def test_a_task_that_nobody_begins_in_time_expires(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    order = task(log=tmp_path / "log")
    handle = await conductor.dispatch(order, agent.agent_id, expires=0.1)
    expiry = asyncio.get_running_loop().time() + 0.11
    await wait_until(lambda: asyncio.get_running_loop().time() > expiry)
    (tmp_path / "go").touch()
    result = await handle.result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (result.status, letter.reason, letter.attempts) == (TaskStatus.FAILED, "expired", 0)
    assert result.metadata["error"]["error_code"] == "TASK_EXPIRED"
    assert not notes(tmp_path / "log")
    assert (await busy.result(20)).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("expires", [0, -1, float("inf"), float("nan")])
async def test_a_bad_expiry_is_refused(conductor: Conductor, agent: AgentNode, expires: float) -> None:
    with pytest.raises(ConfigurationError, match="expires"):
        await conductor.dispatch(task(), expires=expires)


@pytest.mark.parametrize("do", ["spin", "sleep"])
async def test_a_task_that_takes_too_long_is_kept(conductor: Conductor, devops: AgentNode, do: str) -> None:
    order = task(do, None, timeout=1, seconds=60)
    result = await (await conductor.dispatch(order, devops.agent_id)).result(30)
    letter = await the_letter(conductor, order.task_id)
    assert result.metadata["error"]["error_code"] == "TASK_TIMED_OUT"
    assert (letter.reason, letter.attempts, letter.agent_id) == ("time_limit", 1, devops.agent_id)
    assert json.loads(letter.body)[0] == [order.model_dump(mode="json")]


@pytest.mark.parametrize("do", ["spin", "sleep"])
async def test_the_letter_of_a_time_limit_counts_all_tries(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path, do: str
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    turns = ["die", "fail_with", do]
    order = task(
        "in_turn", None, turns=turns, code="LLM_TIMEOUT", seconds=60, timeout=2, log=tmp_path / "log"
    )
    await (await conductor.dispatch(order, node.agent_id)).result(60)
    letter = await the_letter(conductor, order.task_id)
    assert (letter.reason, letter.attempts, len(notes(tmp_path / "log"))) == ("time_limit", 3, 3)
    assert (letter.last_failed_at - letter.first_failed_at).total_seconds() > 1


async def test_what_celery_itself_revokes_and_ends_has_a_result(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    order = task("wait_for_file", None, file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order, node.agent_id)
    await wait_until(lambda: notes(tmp_path / "log"))
    await asyncio.to_thread(farm.app.control.revoke, order.task_id, terminate=True)
    result = await handle.result(20)
    stored = await conductor.state.get_task_result(order.task_id)
    assert stored is not None
    assert (result.status, stored.status) == (TaskStatus.SKIPPED, TaskStatus.SKIPPED)
    assert stored.agent_id == node.agent_id
    assert not await letters_of(conductor, order.task_id)
    await echo(conductor, node)


async def test_a_task_that_kills_its_process_three_times_is_kept(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    order = task("die", None, log=tmp_path / "log")
    await (await conductor.dispatch(order, node.agent_id)).result(60)
    letter = await the_letter(conductor, order.task_id)
    assert (letter.reason, letter.attempts) == ("worker_lost", 3)
    assert len(notes(tmp_path / "log")) == 3


async def test_a_task_for_an_agent_that_nobody_has_ever_seen_is_kept(
    conductor: Conductor, agent: AgentNode
) -> None:
    order = task()
    handle = await conductor.dispatch(order, f"nobody-{uuid.uuid4().hex[:8]}")
    result = await handle.result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (result.status, letter.reason) == (TaskStatus.FAILED, "unknown_agent")
    assert "There is no agent 'nobody-" in str(result.error_message)


async def test_tasks_that_wait_for_an_agent_which_is_forgotten_are_kept(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    node.kill("SIGKILL", reload_container=False)
    handles = [await conductor.dispatch(task(), node.agent_id) for _ in range(3)]
    await conductor.forget_agents([node.agent_id])
    for handle in handles:
        assert (await handle.result(10)).status is TaskStatus.FAILED
        assert (await the_letter(conductor, handle.task_id)).reason is DeadLetterReason.UNKNOWN_AGENT


async def test_a_message_for_an_agent_that_the_node_does_not_host_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    asked = AgentMessage(message_type=MessageType.FEEDBACK, sender_id="test", payload={"do": "echo"})
    farm.app.send_task(
        "conductor.handle_message",
        kwargs={"message": asked.model_dump(mode="json"), "agent_id": "somebody-else"},
        task_id=asked.message_id,
        queue=agent.worker_queue,
    )
    (letter,) = await wait_until(lambda: letters_of(conductor, asked.message_id))
    assert (letter.reason, letter.agent_id) == ("unknown_agent", "somebody-else")


async def test_a_task_that_was_assigned_by_message_and_that_nobody_waits_for_is_kept(
    conductor: Conductor, agent: AgentNode
) -> None:
    order = task("fail")
    assignment = AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT,
        sender_id="test",
        payload={"task": order.model_dump(mode="json")},
    )
    await conductor.bus.publish(agent_channel(agent.agent_id), assignment)
    (letter,) = await wait_until(lambda: letters_of(conductor, order.task_id))
    assert (letter.reason, letter.task_name) == ("rejected", order.name)
    await conductor.bus.request(
        agent_channel(agent.agent_id), assignment.model_copy(update={"message_id": "x"})
    )
    assert len(await letters_of(conductor, order.task_id)) == 1


async def test_a_task_that_waits_to_be_retried_is_cancelled(
    conductor: Conductor, agent: AgentNode, store: redis.Redis, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    handle = await conductor.dispatch(task("fail_with", code="LLM_TIMEOUT", log=log), agent.agent_id)

    async def waits() -> bool:
        record = json.loads(await store.get(record_key(handle.task_id)) or "{}")
        return bool(record.get("status") == "RETRY")

    await wait_until(waits, interval=0.002)
    assert await handle.cancel()
    assert (await handle.result(10)).status is TaskStatus.SKIPPED
    before = len(notes(log))
    marker = task("fail_with", code="LLM_TIMEOUT", times=1, log=log)
    assert (
        await (await conductor.dispatch(marker, agent.agent_id)).result(20)
    ).status is TaskStatus.COMPLETED
    assert len([note for note in notes(log) if note["task"] == handle.task_id]) == before
    assert not await letters_of(conductor, handle.task_id)


async def test_an_open_breaker_stops_every_node_and_lets_exactly_the_probes_through(
    conductor: Conductor, starting: Starting, farm: Farm, store: redis.Redis, tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    settings = {"CONDUCTOR_ERRORS__BREAKER__FAILURE_THRESHOLD": "5"}
    nodes = [starting("BreakableAgent", **settings) for _ in range(3)]
    farm.setup(*nodes)

    async def outcome(order: TaskDefinition, node: AgentNode) -> str:
        result = await (await conductor.dispatch(order, node.agent_id)).result(30)
        error = result.metadata.get("error", {})
        return str(error.get("error_code", result.status.value))

    def failing() -> TaskDefinition:
        return task("fail", AgentType.DEPLOYING)

    assert [await outcome(failing(), nodes[0]) for _ in range(5)] == ["UNKNOWN_ERROR"] * 5
    orders = [task("echo", AgentType.DEPLOYING, log=log) for _ in nodes]
    assert [await outcome(*pair) for pair in zip(orders, nodes, strict=True)] == ["CIRCUIT_OPEN"] * 3
    assert not notes(log)
    for order in orders:
        assert (await the_letter(conductor, order.task_id)).reason is DeadLetterReason.CIRCUIT_OPEN

    await wait_until(lambda: _recovered(store), timeout=5)
    probes = [task("wait_for_file", AgentType.DEPLOYING, file=go, log=log) for _ in nodes]
    running = [asyncio.create_task(outcome(*pair)) for pair in zip(probes, nodes, strict=True)]
    done, waiting = await asyncio.wait(running, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    assert [one.result() for one in done] == ["CIRCUIT_OPEN"]
    await wait_until(lambda: len(notes(log)) == 2)
    go.touch()
    assert [await one for one in waiting] == ["completed"] * 2
    assert [await outcome(task(), node) for node in nodes] == ["completed"] * 3


async def _recovered(store: redis.Redis) -> bool:
    opened = await store.hget("conductor:breaker:deploying", "opened_at")
    seconds, micros = await store.time()
    return bool(opened) and seconds * 1000 + micros / 1000 - int(opened) > 1000
