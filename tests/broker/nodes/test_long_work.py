"""Work that takes longer than RabbitMQ's `consumer_timeout`, on a RabbitMQ with a short one."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import RecoverableConnectionError

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.messages import AgentMessage
from tests.broker.nodes.conftest import SETTINGS, task
from tests.support import rabbitmq
from tests.support.agents import notes
from tests.support.buses import Inbox, a_message, unique
from tests.support.nodes import Farm
from tests.support.waiting import wait_until, wait_until_sync

#: Seconds that this RabbitMQ waits for an acknowledgement, and that the work here takes.
PATIENCE, LONG = 4.0, 8.0
#: When what is held is kept: in time, and never.
EARLY = {"CONDUCTOR_WORK__VISIBILITY_TIMEOUT": "1", "CONDUCTOR_WORK__TOUCH_INTERVAL": "0.2"}
NEVER = {"CONDUCTOR_WORK__VISIBILITY_TIMEOUT": "600"}


@pytest.fixture(scope="module")
def impatient_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := rabbitmq.server_absence():
        pytest.skip(reason)
    with rabbitmq.server(tmp_path_factory.mktemp("rabbitmq"), PATIENCE) as url:
        yield url


@pytest.fixture(params=["classic", "quorum"])
def own_farm(
    request: pytest.FixtureRequest, impatient_url: str, valkey_url: str, tmp_path: Path
) -> Iterator[Farm]:
    with kombu_connection(impatient_url) as connection:
        # Of the other type.
        topology.type_queue(AgentType.TEST_DATA)(connection.default_channel).delete()
    url = f"{impatient_url}?task_queues={request.param}"
    addresses = Addresses(url, f"{valkey_url.rpartition('/')[0]}/9")
    farm = Farm(addresses, tmp_path, SETTINGS)
    yield farm
    farm.teardown()


async def a_long_time() -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + LONG
    await wait_until(lambda: loop.time() >= until, timeout=2 * LONG)


async def test_a_long_task_is_run_once_and_its_node_works_on(own_farm: Farm, tmp_path: Path) -> None:
    node = own_farm.start("ThirdAgent", **EARLY)
    own_farm.setup(node)
    log, go = tmp_path / "log", tmp_path / "go"
    async with Conductor(own_farm.config) as conductor:
        order = task("wait_for_file", AgentType.TEST_DATA, file=go, log=log)
        long = await conductor.dispatch(order)
        await wait_until(lambda: notes(log))
        behind = [await conductor.dispatch(task(say=number), node.agent_id) for number in range(3)]
        await a_long_time()
        go.touch()
        results = [await handle.result(20) for handle in (long, *behind)]
    assert {result.status for result in results} == {TaskStatus.COMPLETED}
    assert len(notes(log)) == 1
    assert "Connection to broker lost" not in node.logs()


async def test_a_node_that_was_waited_for_too_long_does_its_task_again(
    own_farm: Farm, tmp_path: Path
) -> None:
    node = own_farm.start("ThirdAgent", **NEVER)
    own_farm.setup(node)
    log, go = tmp_path / "log", tmp_path / "go"
    async with Conductor(own_farm.config) as conductor:
        order = task("wait_for_file", AgentType.TEST_DATA, file=go, log=log)
        handle = await conductor.dispatch(order)
        await wait_until(lambda: len(notes(log)) == 2, timeout=3 * LONG)
        go.touch()
        assert (await handle.result(20)).status is TaskStatus.COMPLETED
        again = await conductor.dispatch(task(), node.agent_id)
        assert (await again.result(20)).status is TaskStatus.COMPLETED
    assert len(notes(log)) == 2


async def test_a_long_callback_of_a_group_is_run_once(impatient_url: str) -> None:
    channel, inbox, ended = unique("long"), Inbox(), asyncio.Event()
    soon: dict[str, Any] = {"visibility_timeout": 1.0, "touch_interval": 0.2}

    async def slow(message: AgentMessage) -> None:
        await inbox(message)
        if message.payload["number"] == 1:
            await a_long_time()
            ended.set()

    async with (
        KombuMessageBus(impatient_url, **soon) as first,
        KombuMessageBus(impatient_url, **soon) as other,
    ):
        await first.subscribe(channel, slow, group="long")
        await first.publish(channel, a_message(1))
        await inbox.has(1)
        await other.subscribe(channel, inbox, group="long")
        for number in (2, 3):
            await other.publish(channel, a_message(number))
        await asyncio.wait_for(ended.wait(), 3 * LONG)
        await other.unsubscribe(channel)
        await first.publish(channel, a_message(4))
        await inbox.has(1, 2, 3, 4)
    assert {message.metadata["attempt"] for message in inbox.messages} == {1}


def test_a_connection_that_lost_its_channel_to_the_timeout_is_lost(impatient_url: str) -> None:
    queue = topology.agent_queue(uuid.uuid4().hex)
    with kombu_connection(impatient_url) as connection:
        channel, held = connection.channel(), []
        bound = queue(channel)
        bound.declare()
        connection.Producer().publish("long", exchange="", routing_key=queue.name)
        bound.consume("consumer", callback=held.append, no_ack=False)
        wait_until_sync(lambda: held or connection.drain_events(timeout=1))
        # Nobody reads meanwhile that RabbitMQ closes the channel.
        until = time.monotonic() + LONG
        wait_until_sync(lambda: time.monotonic() > until, timeout=2 * LONG)
        with pytest.raises(RecoverableConnectionError):
            channel.keep(0)
        # The event loop meets it at its next look at the socket.
        with pytest.raises(ConnectionError):
            connection.connection.send_heartbeat()
