"""The broker goes away and comes back, or was never there."""

import asyncio
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conductor.broker import consumer, session
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.topology import EVENTS
from conductor.core.enums import MessageType
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.store.embedded import EmbeddedServer
from tests.support.buses import Inbox, a_message, unique
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

#: Seconds after its return within which everything has to work again.
RECOVERY = 10.0


class Broker(ABC):
    """A broker that can be stopped."""

    url: str

    @abstractmethod
    async def start(self) -> None:
        """Bring it back, at the same address."""

    @abstractmethod
    async def stop(self) -> None:
        """Take it away, with all connections."""


class OwnValkey(Broker):
    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._server = EmbeddedServer(directory, port=port)
        self.url = f"redis://127.0.0.1:{port}/0"

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self._server.stop)


class ProxiedRabbitMQ(Broker):
    def __init__(self, url: str) -> None:
        self._proxy = Proxy(url)
        self.url = self._proxy.url

    async def start(self) -> None:
        await self._proxy.start()

    async def stop(self) -> None:
        await self._proxy.stop()


@pytest.fixture(params=["valkey", "rabbitmq"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    broker: Broker
    if request.param == "valkey":
        broker = OwnValkey(tmp_path / "valkey")
    else:
        broker = ProxiedRabbitMQ(request.getfixturevalue("rabbitmq_url"))
    await broker.start()
    yield broker
    await broker.stop()


def bus_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("conductor bus")]


def other_tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def is_live(bus: KombuMessageBus, channel: str) -> bool:
    """Whether the broker has the subscription, as far as the bus knows."""
    assert bus._session is not None
    route = bus._session._routes.get(EVENTS, channel)
    return route is not None and route.live.is_set()


def code(raised: pytest.ExceptionInfo[MessageBusError]) -> str:
    return raised.value.error_code


async def test_publisher_and_subscriber_work_again_without_anybodys_help(broker: Broker) -> None:
    channel, inbox, runs = unique("again"), Inbox(), Inbox()
    async with KombuMessageBus(broker.url) as subscriber, KombuMessageBus(broker.url) as publisher:
        await subscriber.subscribe(channel, inbox)
        await subscriber.subscribe(f"{channel}*", runs)
        await publisher.publish(channel, a_message(0))
        await inbox.has(0)

        await broker.stop()
        meanwhile = asyncio.ensure_future(publisher.publish(channel, a_message(1)))
        await wait_until(lambda: not is_live(subscriber, channel))
        await broker.start()
        back = time.monotonic()

        await asyncio.wait_for(meanwhile, RECOVERY)
        while 99 not in inbox.numbers or 99 not in runs.numbers:
            assert time.monotonic() - back < RECOVERY
            await publisher.publish(channel, a_message(99))
            await asyncio.sleep(0.05)
        assert subscriber.is_connected


async def test_requests_work_again(broker: Broker) -> None:
    channel = unique("ask-again")
    async with KombuMessageBus(broker.url) as responder, KombuMessageBus(broker.url) as asker:

        async def answer(message: AgentMessage) -> None:
            response = message.create_response("responder", MessageType.FEEDBACK)
            await responder.publish("conductor:response", response)

        await responder.subscribe(channel, answer)
        await asker.request(channel, a_message(1), timeout=10)
        await broker.stop()
        await broker.start()

        async def answered() -> Any:
            request = asker.request(channel, a_message(2), timeout=0.5)
            outcome = (await asyncio.gather(request, return_exceptions=True))[0]
            return not isinstance(outcome, MessageBusError)

        await wait_until(answered, timeout=RECOVERY)


async def test_operations_meanwhile_fail_within_their_limit(broker: Broker) -> None:
    channel = unique("meanwhile")
    async with KombuMessageBus(broker.url, publish_timeout=0.5) as bus:
        await bus.subscribe(channel, Inbox())
        await broker.stop()
        began = time.monotonic()
        outcomes = await asyncio.gather(
            bus.publish(channel, a_message(1)),
            bus.publish(channel, a_message(2, correlation_id="x")),
            bus.subscribe(f"{channel}:new", Inbox()),
            bus.request(channel, a_message(3), timeout=30),
            return_exceptions=True,
        )
        assert time.monotonic() - began < 5
        for outcome in outcomes:
            assert isinstance(outcome, MessageBusError)
            assert outcome.error_code == "BROKER_UNAVAILABLE"
        with pytest.raises(MessageBusError) as raised:
            await bus.request(channel, a_message(4), timeout=0.2)
        assert code(raised) == "REQUEST_TIMEOUT"
        await bus.unsubscribe(channel)


async def test_a_failed_subscribe_leaves_no_subscription(broker: Broker) -> None:
    channel, inbox, witness = unique("failed"), Inbox(), Inbox()
    async with KombuMessageBus(broker.url, publish_timeout=0.3) as bus:
        await broker.stop()
        with pytest.raises(MessageBusError):
            await bus.subscribe(channel, inbox)
        await broker.start()

        async def subscribed() -> Any:
            try:
                await bus.subscribe(channel, witness)
            except MessageBusError:
                return False
            return True

        await wait_until(subscribed, timeout=RECOVERY)
        assert bus._session is not None
        publisher = bus._session.publisher
        await wait_until(lambda: publisher.trouble is None, timeout=RECOVERY)
        await bus.publish(channel, a_message(1))
        await witness.has(1)
        assert inbox.messages == []


async def test_subscribing_again_in_vain_keeps_the_subscription_there_was(broker: Broker) -> None:
    channel, inbox = unique("kept"), Inbox()
    async with KombuMessageBus(broker.url, publish_timeout=0.5) as bus:
        await bus.subscribe(channel, inbox)
        await broker.stop()
        await wait_until(lambda: not is_live(bus, channel))
        with pytest.raises(MessageBusError):
            await bus.subscribe(channel, inbox)
        await broker.start()
        await wait_until(lambda: is_live(bus, channel), timeout=RECOVERY)
        await wait_until(lambda: bus._session.publisher.trouble is None, timeout=RECOVERY)  # type: ignore[union-attr]
        await bus.publish(channel, a_message(1))
        await inbox.has(1)


async def test_a_long_outage_does_not_fill_the_memory(broker: Broker) -> None:
    async with KombuMessageBus(broker.url, publish_timeout=0.2) as bus:
        assert bus._session is not None
        publisher = bus._session.publisher
        await broker.stop()
        for _ in range(3):
            publishes = [bus.publish("somewhere", a_message(number)) for number in range(100)]
            outcomes = await asyncio.gather(*publishes, return_exceptions=True)
            assert all(isinstance(outcome, MessageBusError) for outcome in outcomes)
        await wait_until(lambda: len(publisher._unsent) + publisher._queue.qsize() == 0)
        assert len(publisher._outstanding) == 0


async def test_nothing_is_left_after_disconnecting_in_an_outage(broker: Broker) -> None:
    tasks = other_tasks()
    bus = KombuMessageBus(broker.url)
    await bus.connect()
    assert len(bus_threads()) == 2
    await bus.subscribe(unique("left"), Inbox())
    await broker.stop()
    publishing = asyncio.ensure_future(bus.publish("somewhere", a_message(1)))
    asking = asyncio.ensure_future(bus.request("somewhere", a_message(2)))
    await asyncio.sleep(0)
    began = time.monotonic()
    await bus.disconnect()
    assert time.monotonic() - began < 5
    for operation in (publishing, asking):
        with pytest.raises(MessageBusError) as raised:
            await operation
        assert code(raised) == "BUS_DISCONNECTED"
    assert bus_threads() == []
    await wait_until(lambda: other_tasks() <= tasks)


async def test_nothing_is_left_after_disconnecting(broker: Broker) -> None:
    tasks = other_tasks()
    async with KombuMessageBus(broker.url) as bus:
        channel = unique("left")
        await bus.subscribe(channel, Inbox())
        await bus.subscribe(f"{channel}*", Inbox())
        await bus.publish(channel, a_message(1))
        with pytest.raises(MessageBusError):
            await bus.request(channel, a_message(2), timeout=0.1)
    assert bus_threads() == []
    await wait_until(lambda: other_tasks() <= tasks)


@pytest.mark.parametrize("kind", ["valkey", "rabbitmq"])
async def test_a_silent_broker_counts_as_gone(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(session, "_HEARTBEAT", 2.0)
    monkeypatch.setattr(session, "_IO_TIMEOUT", 1.0)
    channel, inbox = unique("silent"), Inbox()
    proxy = Proxy(request.getfixturevalue(f"{kind}_url"))
    async with proxy, KombuMessageBus(proxy.url, publish_timeout=20, connect_timeout=1) as bus:
        await bus.subscribe(channel, inbox)
        proxy.fall_silent()
        publishing = asyncio.ensure_future(bus.publish(channel, a_message(1)))
        await wait_until(lambda: not is_live(bus, channel), timeout=15)
        await proxy.stop()
        await proxy.start()
        await asyncio.wait_for(publishing, RECOVERY)
        await wait_until(lambda: is_live(bus, channel), timeout=RECOVERY)
        await bus.publish(channel, a_message(2))
        await wait_until(lambda: 2 in inbox.numbers)
    assert bus_threads() == []


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
async def test_connecting_where_nobody_listens(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bus = KombuMessageBus(f"{scheme}://user:secret@127.0.0.1:{port}/0", connect_timeout=2)
    with pytest.raises(MessageBusError, match="No broker answers") as raised:
        await bus.connect()
    assert code(raised) == "BROKER_UNAVAILABLE"
    assert "secret" not in str(raised.value) + repr(raised.value.details)
    assert not bus.is_connected
    assert bus_threads() == []


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
async def test_connecting_where_nobody_answers(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        bus = KombuMessageBus(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/0", connect_timeout=0.5)
        began = time.monotonic()
        with pytest.raises(MessageBusError) as raised:
            await bus.connect()
        assert time.monotonic() - began < 4
        assert code(raised) == "BROKER_UNAVAILABLE"
        await wait_until(lambda: bus_threads() == [])


async def test_a_wrong_password_has_a_code_of_its_own(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "locked", settings={"requirepass": "right"}) as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
        for login in (":wrong@", "user:wrong@", ""):
            bus = KombuMessageBus(f"redis://{login}127.0.0.1:{port}/0")
            with pytest.raises(MessageBusError, match="user or the password") as raised:
                await bus.connect()
            assert code(raised) == "BROKER_AUTH_FAILED"
            assert "wrong" not in str(raised.value).replace("WRONGPASS", "")
        async with KombuMessageBus(server.url) as bus:
            await bus.publish("here", a_message())


async def test_a_wrong_login_or_virtual_host_of_rabbitmq(rabbitmq_url: str) -> None:
    wrong = rabbitmq_url.replace("guest:guest", "guest:wrong")
    with pytest.raises(MessageBusError) as raised:
        await KombuMessageBus(wrong).connect()
    assert code(raised) == "BROKER_AUTH_FAILED"
    with pytest.raises(MessageBusError) as raised:
        await KombuMessageBus(rabbitmq_url + "-no-such").connect()
    assert code(raised) == "BROKER_REFUSED"
    assert bus_threads() == []
