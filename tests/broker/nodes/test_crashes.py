"""What becomes of tasks when processes end, in good order or not."""

import asyncio
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis.asyncio as redis
from celery.result import AsyncResult

from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.enums import AgentStatus, AgentType, MessageType, TaskStatus
from conductor.core.messages import AgentMessage
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

Starting = Callable[..., AgentNode]


async def test_sigterm_lets_the_running_task_finish_and_then_stops(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    order = task("wait_for_file", AgentType.TEST_DATA, file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order)
    await wait_until(lambda: notes(tmp_path / "log"))
    later = await conductor.dispatch(task(assigned_to=AgentType.TEST_DATA))
    node.kill("SIGTERM", reload_container=False)
    await wait_until(lambda: "Warm shutdown" in node.logs())
    (tmp_path / "go").touch()
    assert (await handle.result(20)).status is TaskStatus.COMPLETED
    assert await asyncio.to_thread(node.container.wait) == 0
    state = await conductor.state.get_agent_state(node.agent_id)
    assert state is not None
    assert (state.status, state.current_task_id) == (AgentStatus.CANCELLED, None)
    assert order.task_id in state.completed_tasks
    # What waited is for the next node.
    farm.setup(starting("ThirdAgent"))
    assert (await later.result(20)).status is TaskStatus.COMPLETED


async def test_a_node_that_is_told_to_stop_ends_after_its_task(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    order = task("wait_for_file", file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order, node.agent_id)
    await wait_until(lambda: notes(tmp_path / "log"))
    stop = AgentMessage(message_type=MessageType.CONTROL, sender_id="test", payload={"command": "stop"})
    await conductor.bus.publish(agent_channel(node.agent_id), stop)
    await wait_until(lambda: "Warm shutdown" in node.logs())
    (tmp_path / "go").touch()
    assert (await handle.result(20)).status is TaskStatus.COMPLETED
    assert await asyncio.to_thread(node.container.wait) == 0


@pytest.mark.parametrize("victim", ["child", "node"])
async def test_a_killed_process_has_its_task_done_on_another_node(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path, victim: str
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    nodes = [starting("SecondAgent"), starting("SecondAgent")]
    farm.setup(*nodes)
    order = task("wait_for_file", AgentType.REVIEW, file=go, log=log)
    handle = await conductor.dispatch(order)
    (first,) = await wait_until(lambda: notes(log))
    node = next(node for node in nodes if node.agent_id == first["agent"])
    if victim == "child":
        # Stopped, so that the other node is the one to go on.
        os.kill(node.container.pid, signal.SIGSTOP)
        os.kill(first["pid"], signal.SIGKILL)
        node.kill("SIGCONT", reload_container=False)
    else:
        node.kill("SIGKILL", reload_container=False)
    await wait_until(lambda: len(notes(log)) == 2, timeout=30)
    go.touch()
    result = await handle.result(20)
    assert result.status is TaskStatus.COMPLETED
    assert [note["task"] for note in notes(log)] == [order.task_id] * 2
    if victim == "node":
        assert result.agent_id != first["agent"]
        dead = await conductor.state.get_agent_state(first["agent"])
        assert dead is not None
        assert (dead.status, dead.current_task_id) == (AgentStatus.FAILED, None)
    else:
        assert await wait_until(lambda: _is_idle(conductor, first["agent"]), timeout=20)
    stored = await conductor.state.get_task_result(order.task_id)
    assert stored == result
    done_by = await conductor.state.get_agent_state(result.agent_id)
    assert done_by is not None
    assert done_by.completed_tasks.count(order.task_id) == 1


async def test_a_task_of_a_killed_node_waits_for_the_same_agent_to_come_back(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    node = starting("SecondAgent")
    farm.setup(node)
    order = task("wait_for_file", assigned_to=None, file=go, log=log)
    handle = await conductor.dispatch(order, node.agent_id)
    await wait_until(lambda: notes(log))
    waiting = [await conductor.dispatch(task(assigned_to=None), node.agent_id) for _ in range(3)]
    node.kill("SIGKILL", reload_container=False)
    state = await conductor.state.get_agent_state(node.agent_id)
    assert state is not None
    assert state.status is AgentStatus.RUNNING  # nobody was left to say otherwise; its heartbeat is old
    go.touch()
    farm.setup(starting("SecondAgent", node.agent_id))
    for each in (handle, *waiting):
        assert (await each.result(30)).status is TaskStatus.COMPLETED
    assert await wait_until(lambda: _is_idle(conductor, node.agent_id))


async def test_a_task_that_is_cancelled_while_no_node_has_it_does_not_run_again(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    node = starting("SecondAgent")
    farm.setup(node)
    order = task("wait_for_file", assigned_to=None, file=tmp_path / "go", log=log)
    handle = await conductor.dispatch(order, node.agent_id)
    await wait_until(lambda: notes(log))
    node.kill("SIGKILL", reload_container=False)
    assert await handle.cancel()
    farm.setup(starting("SecondAgent", node.agent_id))
    result = await handle.result(30)
    assert (result.status, len(notes(log))) == (TaskStatus.SKIPPED, 1)
    assert not await handle.cancel()
    stored = await wait_until(lambda: conductor.state.get_task_result(order.task_id))
    assert (stored.status, stored.agent_id) == (TaskStatus.SKIPPED, node.agent_id)
    assert await wait_until(lambda: _is_idle(conductor, node.agent_id))


async def test_a_finished_task_that_is_delivered_again_is_not_run_again(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    """The parent is stopped and killed between the storing of the result and the acknowledgement."""
    log = tmp_path / "log"
    node = starting("SecondAgent")
    farm.setup(node)
    order = task("wait_for_file", assigned_to=None, file=tmp_path / "go", log=log)
    handle = await conductor.dispatch(order, node.agent_id)
    await wait_until(lambda: notes(log))
    os.kill(node.container.pid, signal.SIGSTOP)
    (tmp_path / "go").touch()
    result = await handle.result(20)
    assert result.status is TaskStatus.COMPLETED
    node.container.kill("SIGKILL")
    farm.setup(starting("SecondAgent", node.agent_id))
    follower = await conductor.dispatch(task(assigned_to=None), node.agent_id)
    assert (await follower.result(30)).status is TaskStatus.COMPLETED
    client = redis.Redis.from_url(farm.addresses.redis_url)
    await wait_until(lambda: _nothing_unacknowledged(client, farm), timeout=20)
    await client.aclose()
    assert len(notes(log)) == 1
    assert await conductor.state.get_task_result(order.task_id) == result


async def test_a_task_that_kills_its_process_again_and_again_is_given_up(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    node = starting("SecondAgent")
    farm.setup(node)
    order = task("die", log=tmp_path / "log")
    handle = await conductor.dispatch(order, node.agent_id)
    result = await handle.result(60)
    assert result.status is TaskStatus.FAILED
    assert "3 times" in str(result.error_message)
    assert len(notes(tmp_path / "log")) == 3
    assert AsyncResult(order.task_id, app=farm.app).state == "FAILURE"
    assert (await (await conductor.dispatch(task(), node.agent_id)).result(20)).status is TaskStatus.COMPLETED


async def test_no_process_of_a_killed_node_survives(starting: Starting, farm: Farm) -> None:
    node = starting("SecondAgent", f"orphan-{uuid.uuid4().hex[:8]}")
    farm.setup(node)
    children = node.container.children()
    assert children
    os.kill(node.container.pid, signal.SIGKILL)
    await wait_until(lambda: not any(psutil.pid_exists(child) for child in children))


async def _is_idle(conductor: Conductor, agent_id: str) -> bool:
    state = await conductor.state.get_agent_state(agent_id)
    return bool(state and state.status is AgentStatus.IDLE and state.current_task_id is None)


async def _nothing_unacknowledged(client: redis.Redis, farm: Farm) -> bool:
    if farm.addresses.broker_url.startswith("amqp"):
        return True
    return not await client.exists("conductor.unacked")
