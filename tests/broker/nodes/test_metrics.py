"""What a node serves Prometheus: exact numbers, also over the deaths of its child."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.enums import MessageType, TaskStatus
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.buses import a_message
from tests.support.metrics import Scrape, url_in, wait_for
from tests.support.nodes import AgentNode
from tests.support.waiting import wait_until, wait_until_sync

Starting = Callable[..., AgentNode]
NAME = "conductor_tasks_total"


@pytest.fixture
def counted(starting: Starting) -> AgentNode:
    """A node that serves its numbers."""
    node = starting("ObedientAgent", CONDUCTOR_METRICS__PORT="0")
    assert node.ready()
    return node


def url_of(node: AgentNode) -> str:
    """Where a node serves."""
    return url_in(wait_until_sync(lambda: node.logs() if "Metrics of node" in node.logs() else ""))


async def end(conductor: Conductor, node: AgentNode, do: str, **orders: object) -> TaskStatus:
    """Have a node do a task to its end, whatever that is."""
    handle = await conductor.dispatch(task(do, **orders), node.agent_id)
    return (await handle.result(60)).status


async def test_tasks_are_counted_by_how_they_end(
    conductor: Conductor, counted: AgentNode, tmp_path: Path
) -> None:
    url = url_of(counted)
    assert Scrape(url).value(NAME, agent_type="coding") == 0
    for _ in range(3):
        assert await end(conductor, counted, "echo") is TaskStatus.COMPLETED
    for do in ("fail", "judge"):
        assert await end(conductor, counted, do) is TaskStatus.FAILED
    log = tmp_path / "log"
    assert await end(conductor, counted, "fail_with", code="LLM_TIMEOUT", times=2, log=log)
    running = await conductor.dispatch(task("sleep", seconds=60, log=tmp_path / "other"), counted.agent_id)
    await wait_until(lambda: notes(tmp_path / "other"))
    await running.cancel()
    wait_for(url, 1, NAME, agent_type="coding", outcome="cancelled")
    wait_for(url, 4, NAME, agent_type="coding", outcome="completed")
    wait_for(url, 2, NAME, agent_type="coding", outcome="failed")
    wait_for(url, 2, "conductor_task_retries_total", agent_type="coding", code="LLM_TIMEOUT")
    wait_for(url, 2, "conductor_dead_letters_total", reason="rejected")
    # Three, two, three tries, and the one that was cancelled.
    wait_for(url, 9, "conductor_task_duration_seconds_count", agent_type="coding")
    # Each task once, when it is begun for the first time.
    wait_for(url, 7, "conductor_task_queue_seconds_count", agent_type="coding")


async def test_what_the_parent_ends_is_counted_too(
    conductor: Conductor, counted: AgentNode, tmp_path: Path
) -> None:
    url = url_of(counted)
    assert await end(conductor, counted, "spin", timeout=1) is TaskStatus.FAILED
    wait_for(url, 1, NAME, agent_type="coding", outcome="failed")
    wait_for(url, 1, "conductor_dead_letters_total", reason="time_limit")
    late = await conductor.dispatch(task("echo"), counted.agent_id, expires=0.001)
    assert (await late.result(60)).status is TaskStatus.FAILED
    wait_for(url, 1, "conductor_dead_letters_total", reason="expired")
    wait_for(url, 1, NAME, agent_type="unknown", outcome="failed")


async def test_numbers_outlive_the_child(conductor: Conductor, counted: AgentNode, tmp_path: Path) -> None:
    url = url_of(counted)
    for _ in range(2):
        await end(conductor, counted, "echo")
    wait_for(url, 2, NAME, agent_type="coding", outcome="completed")
    (child,) = counted.container.children()
    os.kill(child, signal.SIGKILL)
    await wait_until(lambda: child not in counted.container.children())
    assert Scrape(url).value(NAME, outcome="completed") == 2
    await end(conductor, counted, "echo")
    wait_for(url, 3, NAME, agent_type="coding", outcome="completed")


async def test_messages_and_requests_of_a_node_are_counted(conductor: Conductor, counted: AgentNode) -> None:
    url = url_of(counted)
    before = Scrape(url).value("conductor_messages_delivered_total", channel="agent") or 0
    for number in range(5):
        await conductor.bus.publish(agent_channel(counted.agent_id), a_message(number))
    wait_for(url, before + 5, "conductor_messages_delivered_total", channel="agent")
    asked = a_message(
        payload={"task": task("echo").model_dump(mode="json")}, message_type=MessageType.TASK_ASSIGNMENT
    )
    await conductor.bus.request(agent_channel(counted.agent_id), asked, timeout=30)
    wait_for(url, 1, NAME, agent_type="coding", outcome="completed")


async def test_the_port_is_free_when_the_node_has_ended(starting: Starting) -> None:
    node = starting("ObedientAgent", CONDUCTOR_METRICS__PORT="0")
    assert node.ready()
    port = int(url_of(node).rpartition(":")[2].partition("/")[0])
    os.kill(node.container.pid, signal.SIGKILL)  # the child is left alone for a moment
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def is_free() -> bool:
            try:
                listening.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True

        wait_until_sync(is_free, 20)


async def test_a_node_whose_port_is_taken_says_what_to_do_and_works(
    conductor: Conductor, starting: Starting
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = starting("ObedientAgent", CONDUCTOR_METRICS__PORT=str(port))
        assert node.ready()
        assert "CONDUCTOR_METRICS__PORT" in node.logs()
        assert f"127.0.0.1:{port} cannot be listened on" in node.logs()
        assert await end(conductor, node, "echo") is TaskStatus.COMPLETED


async def test_a_node_that_was_asked_for_nothing_serves_nothing(agent: AgentNode) -> None:
    assert "Metrics of node" not in agent.logs()
    listening = [c for c in psutil.Process(agent.container.pid).net_connections() if c.status == "LISTEN"]
    assert listening == []


def test_who_wants_no_metrics_does_not_import_what_counts_them() -> None:
    used = "import conductor, conductor.broker.node, sys, workers; conductor.Conductor, workers.app"
    code = f"{used}; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
