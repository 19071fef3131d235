"""The master dies, the Sentinels make another one: nodes, clients and buses go on there."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from conductor.broker.addresses import Addresses
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.client import Conductor
from conductor.core.enums import TaskStatus
from conductor.core.exceptions import MessageBusError
from conductor.store._valkey import find_binary
from tests.broker.nodes.conftest import SETTINGS, task
from tests.support.agents import notes
from tests.support.buses import Inbox, a_message, unique
from tests.support.nodes import Farm
from tests.support.ports import free_port
from tests.support.waiting import wait_until, wait_until_sync

#: Sentinel's milliseconds until a silent master counts as dead, and between attempts to replace it.
DOWN_AFTER, FAILOVER_TIMEOUT = 500, 2000


@dataclass
class Group:
    """A master, a copy of it and a Sentinel."""

    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]]

    @property
    def url(self) -> str:
        return f"sentinel://127.0.0.1:{self.ports['sentinel']}/0?master_name=main"

    def ask(self, name: str, *words: str) -> object:
        with redis.Redis(port=self.ports[name], socket_timeout=2) as client:
            return client.execute_command(*words)

    def master(self) -> int:
        """The port of the master, as the Sentinel has it."""
        found = self.ask("sentinel", "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        assert isinstance(found, list)
        return int(found[1])


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    binary, ports = str(find_binary()), {name: free_port() for name in ("master", "copy", "sentinel")}
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {ports['sentinel']}\n"
        f"sentinel monitor main 127.0.0.1 {ports['master']} 1\n"
        f"sentinel down-after-milliseconds main {DOWN_AFTER}\n"
        f"sentinel failover-timeout main {FAILOVER_TIMEOUT}\n"
    )
    serve = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
    commands = {
        "master": [binary, "--port", str(ports["master"]), *serve],
        "copy": [
            *[binary, "--port", str(ports["copy"]), *serve],
            *["--replicaof", "127.0.0.1", str(ports["master"])],
        ],
        "sentinel": [binary, str(configuration), "--sentinel"],
    }
    with contextlib.ExitStack() as stack:
        group = Group(ports, {})
        for name, command in commands.items():
            log = stack.enter_context((tmp_path / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            group.processes[name] = process
            with contextlib.suppress(redis.RedisError):
                wait_until_sync(lambda name=name: _answers(group, name))
        wait_until_sync(lambda: _knows(group), 30)
        yield group


def _answers(group: Group, name: str) -> bool:
    try:
        return bool(group.ask(name, "PING"))
    except redis.RedisError:
        return False


def _knows(group: Group) -> bool:
    """Whether the Sentinel could replace the master."""
    found = group.ask("sentinel", "SENTINEL", "REPLICAS", "main")
    return "master-link-status': b'ok'" in str(found)


async def test_work_goes_on_when_the_master_dies(group: Group, valkey_url: str, tmp_path: Path) -> None:
    store = f"{valkey_url.rpartition('/')[0]}/9"
    farm = Farm(Addresses(group.url, store), tmp_path, SETTINGS)
    channel, inbox = unique("news"), Inbox()
    try:
        node = farm.start("ObedientAgent")
        await asyncio.to_thread(farm.setup, node)
        async with Conductor(farm.config) as conductor, KombuMessageBus(group.url) as listener:
            await listener.subscribe(channel, inbox)
            first = await conductor.dispatch(task(), node.agent_id)
            assert (await first.result(30)).status is TaskStatus.COMPLETED
            log, go = tmp_path / "log", tmp_path / "go"
            running = await conductor.dispatch(task("wait_for_file", file=go, log=log), node.agent_id)
            waiting = await conductor.dispatch(task(), node.agent_id)
            await wait_until(lambda: notes(log), timeout=30)
            # What the copy does not have yet would be lost with the master.
            await asyncio.to_thread(group.ask, "master", "WAIT", "1", "5000")
            group.processes["master"].kill()
            await wait_until(lambda: group.master() == group.ports["copy"], timeout=60)
            go.touch()
            assert (await running.result(60)).status is TaskStatus.COMPLETED
            assert (await waiting.result(60)).status is TaskStatus.COMPLETED

            async def sent() -> bool:
                with contextlib.suppress(MessageBusError):
                    await conductor.bus.publish(channel, a_message(1))
                return bool(inbox.messages)

            await wait_until(sent, timeout=60)
            last = await conductor.dispatch(task(), node.agent_id)
            assert (await last.result(30)).status is TaskStatus.COMPLETED
    finally:
        await asyncio.to_thread(farm.teardown)
