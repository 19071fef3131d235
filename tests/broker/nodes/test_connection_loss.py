"""The broker ends all connections of a node."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import redis

from conductor.broker.addresses import Addresses
from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.enums import AgentType, MessageType, TaskStatus
from conductor.core.messages import AgentMessage
from conductor.store.embedded import EmbeddedServer
from tests.broker.nodes.conftest import SETTINGS, task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


async def test_the_running_task_is_done_once_more_and_the_node_works_on(
    conductor: Conductor, starting: Callable[..., AgentNode], farm: Farm, tmp_path: Path
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    log, go = tmp_path / "log", tmp_path / "go"
    order = task("wait_for_file", AgentType.TEST_DATA, file=go, log=log)
    handle = await conductor.dispatch(order)
    await wait_until(lambda: notes(log))
    _cut_all_connections(farm)
    await wait_until(lambda: len(notes(log)) == 2, timeout=30)
    go.touch()
    assert (await handle.result(30)).status is TaskStatus.COMPLETED
    assert len(notes(log)) == 2
    asked = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="test", payload={"do": "echo", "say": 1}
    )
    answer = await conductor.bus.request(agent_channel(node.agent_id), asked, 20)
    assert answer.payload["echo"] == 1
    assert (await (await conductor.dispatch(task(), node.agent_id)).result(20)).status is TaskStatus.COMPLETED


def _cut_all_connections(farm: Farm) -> None:
    url = farm.addresses.broker_url
    if url.startswith("amqp"):
        vhost = urlsplit(url).path.removeprefix("/")
        command = ["rabbitmqctl", "--quiet", "close_all_connections", "--vhost", vhost, "a test"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return
    with redis.Redis.from_url(url) as client:
        mine = client.client_id()
        database = url.rpartition("/")[2]
        for one in client.client_list():
            if one["db"] == database and int(one["id"]) != mine:
                client.client_kill_filter(_id=one["id"])


async def test_a_task_survives_that_broker_and_backend_are_stopped_and_started_again(tmp_path: Path) -> None:
    """Celery alone would take the task for revoked: it cannot file it under RETRY."""
    first = EmbeddedServer(tmp_path / "data")
    first.start()
    farm = Farm(Addresses(first.url, first.url), tmp_path, SETTINGS)
    log, go = tmp_path / "log", tmp_path / "go"
    try:
        node = farm.start("ThirdAgent")
        farm.setup(node)
        async with Conductor(farm.config) as conductor:
            handle = await conductor.dispatch(task("wait_for_file", None, file=go, log=log), node.agent_id)
            await wait_until(lambda: notes(log))
            first.stop()
            await wait_until(lambda: "Connection to broker lost" in node.logs())
            with EmbeddedServer(tmp_path / "data", port=urlsplit(first.url).port):
                await wait_until(lambda: len(notes(log)) == 2, timeout=30)
                go.touch()
                assert (await handle.result(30)).status is TaskStatus.COMPLETED
    except AssertionError as error:
        raise AssertionError(f"{error}\n{farm.logs()}") from error
    finally:
        farm.teardown()
        first.stop()
