"""What those do who look at nodes and see to dead letters."""

import contextlib
import json
import socket
import urllib.request
from typing import Any

import pytest

from conductor.client import Conductor
from tests.support.cli import LIMIT
from tests.support.roles import (
    CLIENT,
    INSPECTOR,
    OPERATOR,
    SIGNING,
    WATCHER,
    Left,
    Place,
    order,
    result_of,
)
from tests.support.waiting import wait_until, wait_until_sync


def work_of_watcher(place: Place, left: Left) -> None:
    """Look at everything there is, and what is not there any more."""
    place.observed.admin.zadd("conductor:index:agent", {"gone": 0})
    overview = place.json(WATCHER, "status")
    assert left.agent_id in [agent["agent_id"] for agent in overview["agents"]]
    assert overview["queues"]
    assert left.agent_id in place.run(WATCHER, "agents")
    assert left.workflow_id[:8] in place.run(WATCHER, "workflows")
    assert place.run(WATCHER, "tasks")
    for shown in (left.agent_id, left.task_id, left.workflow_id, left.dead[0]):
        assert shown in place.run(WATCHER, "show", shown)
    assert place.run(WATCHER, "logs", left.workflow_id)
    with place.background(WATCHER, "metrics", "--json", "--port", "0") as command:
        url = command.wait_for_event(event="ready")["metrics_url"]
        with urllib.request.urlopen(url, timeout=30) as response:
            assert left.agent_id in response.read().decode()


def work_of_inspector(place: Place, left: Left) -> None:
    """Ask nodes: doctor, and Flower."""
    rabbitmq = place.servers[INSPECTOR].broker_url.startswith("amqp")
    found = place.json(INSPECTOR, "doctor", code=None)["findings"]
    lacking = {one["check"] for one in found if one["level"] != "ok"} - {
        "consumer timeout",
        "settings of nodes",
    }
    assert lacking <= ({"RabbitMQ permissions"} if rabbitmq else set()), found
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
        with place.background(INSPECTOR, "flower", "--port", str(port), "--persistent=False") as command:

            def hears() -> bool:
                assert command.process.poll() is None, command
                with contextlib.suppress(OSError):
                    found = _get(f"http://127.0.0.1:{port}/api/workers?refresh=true")
                    return any(
                        left.agent_id in name and of.get("active_queues") for name, of in found.items()
                    )
                return False

            wait_until_sync(hears, timeout=LIMIT, interval=0.3)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


async def work_of_top(place: Place) -> None:
    """Look at what goes on while tasks are done."""
    with place.background(WATCHER, "top", "--json", "--interval", "0.5") as command:
        await wait_until(lambda: command.events, timeout=LIMIT)
        async with Conductor(place.config(CLIENT, signing=SIGNING)) as conductor:

            async def told() -> bool:
                await result_of(conductor, order("echo"))
                return bool(command.events[-1]["tasks_per_second"]["completed"])

            await wait_until(told, timeout=LIMIT)
        assert command.events[-1]["problems"] == [], command


def work_of_operator(place: Place, left: Left) -> None:
    """List, show, replay and purge."""
    listed = place.json(OPERATOR, "dlq", "list")
    assert len(listed["letters"]) >= len(left.dead)
    one, two = left.dead[-1], left.dead[0]
    assert one in place.run(OPERATOR, "dlq", "show", one)
    [of_group] = [
        each["letter_id"]
        for each in listed["letters"]
        if (each["queue"] or "").startswith("conductor.group.")
    ]
    for letter in (one, left.dead[1], of_group):
        place.run(OPERATOR, "dlq", "replay", letter)
    place.run(OPERATOR, "dlq", "purge", two, "--yes")
