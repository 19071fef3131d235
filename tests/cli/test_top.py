"""`conductor top` on a terminal and without one, with nodes that work."""

import asyncio
import json
import os
import pty
import re
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conductor.broker.addresses import Addresses
from conductor.client import Conductor
from conductor.core.enums import AgentType
from conductor.core.models import TaskDefinition
from conductor.store.embedded import EmbeddedServer
from tests.support.cli import COMMAND, LIMIT, background, conductor, environment
from tests.support.nodes import Farm
from tests.support.places import own_servers
from tests.support.projects import write_files
from tests.support.waiting import wait_until, wait_until_sync


@pytest.fixture(params=["valkey", "rabbitmq"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Addresses]:
    with own_servers(request.param, tmp_path) as addresses:
        yield addresses


async def test_snapshots_tell_what_nodes_do(servers: Addresses, tmp_path: Path) -> None:
    farm = Farm(servers, tmp_path)
    settings = f"broker_url: {servers.broker_url}\nredis: {{url: {servers.redis_url}}}\n"
    write_files(tmp_path, {"conductor.yaml": settings})
    try:
        node = farm.start("ObedientAgent")
        await asyncio.to_thread(farm.setup, node)
        with background(tmp_path / "data", "top", "--json", "--interval", "0.5", cwd=tmp_path) as command:
            await wait_until(lambda: command.events, timeout=LIMIT)
            async with Conductor(farm.config) as client:
                for orders in ({"do": "sleep", "seconds": 0.3}, {"do": "judge"}) * 3:
                    task = TaskDefinition(name="t", assigned_to=AgentType.CODING, input_data=orders)
                    await (await client.dispatch(task)).result()

            def told() -> dict[str, Any] | None:
                last = command.events[-1]
                done = [
                    a["completed"] + a["failed"] for a in last["agents"] if a["agent_id"] == node.agent_id
                ]
                rates = last["tasks_per_second"]
                return last if done == [6] and rates["completed"] and rates["failed"] else None

            last = await wait_until(told, timeout=LIMIT)
        assert last["tasks_per_second"]["started"] > 0
        assert 0 < last["wait_seconds"]["p50"] <= last["wait_seconds"]["p95"] < LIMIT
        assert 0.3 <= last["run_seconds"]["p95"] < LIMIT
        [agent] = [a for a in last["agents"] if a["agent_id"] == node.agent_id]
        assert agent["alive"]
        waiting = {queue["name"]: queue["ready"] for queue in last["queues"]}
        assert waiting["conductor.type.coding"] == 0
        assert waiting["conductor.dlq"] >= 3
        assert last["problems"] == []
    finally:
        await asyncio.to_thread(farm.teardown)


class Terminal:
    """A terminal in which the command runs, with what it has written so far."""

    def __init__(self, tmp_path: Path) -> None:
        self.keyboard, terminal = pty.openpty()
        self.before = termios.tcgetattr(self.keyboard)
        self.shown = bytearray()
        self.process = subprocess.Popen(
            [COMMAND, "top", "--interval", "0.3"],
            env=environment(tmp_path / "data") | {"TERM": "xterm", "CONDUCTOR_BUS__CONNECT_TIMEOUT": "1"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        self._terminal = terminal  # open, so that the end of the command is not the end of the terminal
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while part := os.read(self.keyboard, 4096):
            self.shown += part

    def wait_for(self, text: str) -> None:
        """Wait until the text is shown, and forget what was shown."""
        wait_until_sync(lambda: text.encode() in self.shown, timeout=LIMIT)
        self.shown.clear()


def _own_the_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_the_screen_survives_an_outage_and_leaves_the_terminal_as_it_was(tmp_path: Path, key: bytes) -> None:
    with EmbeddedServer(tmp_path / "data") as server:
        terminal = Terminal(tmp_path)
        try:
            terminal.wait_for("started")
            assert termios.tcgetattr(terminal.keyboard) != terminal.before
            server.stop()
            terminal.wait_for("cannot be reached")
            server.start()
            terminal.wait_for("conductor.dlq")
            os.write(terminal.keyboard, key)
            assert terminal.process.wait(LIMIT) == 0
            assert termios.tcgetattr(terminal.keyboard) == terminal.before
            wait_until_sync(lambda: b"\x1b[?1049l" in terminal.shown, timeout=LIMIT)
            assert b"Traceback" not in terminal.shown
        finally:
            if terminal.process.poll() is None:
                terminal.process.kill()
                terminal.process.wait()


def test_one_snapshot_without_a_terminal(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {"conductor.yaml": "broker_url: redis://:hidden-word@127.0.0.1:1/0\nbus: {connect_timeout: 0.5}\n"},
    )
    done = conductor(tmp_path / "data", "top", "--once", "--interval", "0.2", cwd=tmp_path)
    assert done.returncode == 1
    assert "the broker at redis://:***@127.0.0.1:1/0 cannot be reached" in done.stdout
    assert re.search(r"^started +- ", done.stdout, re.MULTILINE)
    assert "0.00" not in done.stdout
    told = conductor(tmp_path / "data", "top", "--once", "--interval", "0.2", "--json", cwd=tmp_path)
    assert set(json.loads(told.stdout)["tasks_per_second"].values()) == {None}
    assert "hidden-word" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
