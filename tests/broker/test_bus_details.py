"""What the bus over a broker promises beyond the contract."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import kombu
import pytest
import redis

from conductor.broker import topology
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.transport import kombu_connection
from conductor.core.enums import MessageType
from conductor.core.exceptions import ConfigurationError, MessageBusError
from conductor.core.messages import AgentMessage
from tests.support import raw_amqp
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until, wait_until_sync


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")  # type: ignore[no-any-return]


@pytest.fixture
async def bus(url: str) -> AsyncIterator[KombuMessageBus]:
    async with KombuMessageBus(url) as bus:
        yield bus


def publish_raw(url: str, channel: str, body: object, **properties: object) -> None:
    """Publish as any program with kombu, and kombu's own transport, would."""
    with kombu.Connection(url) as connection:
        driver = connection.transport.driver_type
        connection.Producer(auto_declare=True).publish(
            body,
            exchange=topology.events_exchange(driver),
            routing_key=topology.event_routing_key(driver, channel),
            declare=[topology.events_exchange(driver)],
            **properties,
        )


async def test_a_full_buffer_drops_counts_and_logs(url: str, caplog: pytest.LogCaptureFixture) -> None:
    channel, release, seen = unique("slow"), asyncio.Event(), Inbox()

    async def slow(message: AgentMessage) -> None:
        await release.wait()
        await seen(message)

    witness = Inbox()
    async with KombuMessageBus(url, buffer_size=10) as bus:
        await bus.subscribe(channel, slow)
        await bus.subscribe(f"{channel}*", witness)
        with caplog.at_level(logging.WARNING):
            for number in range(20):
                await bus.publish(channel, a_message(number))
                await witness.has(*range(number + 1))
            await wait_until(lambda: bus.dropped_count > 0)
        release.set()
        await wait_until(lambda: len(seen.messages) + bus.dropped_count == 20)
        assert seen.numbers == list(range(11))
        assert bus.dropped_count == 9
    assert channel in caplog.text
    assert "full" in caplog.text
    assert caplog.text.count("full") == 1


@pytest.mark.parametrize(
    "body", [{"no": "message"}, "text", "", [1], None, {"sender_id": "x", "message_type": "unheard-of"}]
)
async def test_what_is_no_message_is_counted_and_logged_with_its_channel(
    url: str, bus: KombuMessageBus, caplog: pytest.LogCaptureFixture, body: object
) -> None:
    channel, inbox = unique("invalid"), Inbox()
    await bus.subscribe(f"{channel}:*", inbox)
    with caplog.at_level(logging.WARNING):
        await asyncio.to_thread(publish_raw, url, f"{channel}:deep", body, serializer="json")
        await wait_until(lambda: bus.invalid_count == 1)
    assert f"{channel}:deep" in caplog.text
    await bus.publish(f"{channel}:deep", a_message(1))
    await inbox.has(1)


async def test_bytes_that_are_not_even_text_do_no_harm(
    url: str, bus: KombuMessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    channel, inbox = unique("bytes"), Inbox()
    await bus.subscribe(channel, inbox)
    with caplog.at_level(logging.WARNING):
        await asyncio.to_thread(
            publish_raw,
            url,
            channel,
            b"\xff\xfe\x00",
            content_type="application/octet-stream",
            content_encoding="binary",
        )
        await wait_until(lambda: bus.invalid_count == 1)
    await bus.publish(channel, a_message(1))
    await inbox.has(1)


@pytest.mark.parametrize(
    ("headers", "properties"),
    [
        ({}, {"reply_to": "somebody", "correlation_id": [1]}),
        ({}, {"reply_to": 5}),
        ({topology.DEADLINE_HEADER: "soon"}, {"reply_to": "somebody"}),
        ({topology.DEADLINE_HEADER: 10**400}, {"reply_to": "somebody"}),
        ([1], {}),
        ({}, None),
    ],
    ids=str,
)
async def test_on_redis_properties_that_no_message_has_are_invalid(
    valkey_url: str, headers: object, properties: dict[str, Any] | None
) -> None:
    channel, inbox, envelope = unique("properties"), Inbox(), {"headers": headers, "properties": properties}
    raw = json.dumps(envelope | {"body": a_message(1).model_dump_json()})
    async with KombuMessageBus(valkey_url) as bus:
        await bus.subscribe(channel, inbox)
        with redis.Redis.from_url(valkey_url) as client, kombu_connection(valkey_url) as connection:
            topic = connection.default_channel._get_publish_topic(topology.EVENTS, channel)
            assert client.publish(topic, raw)
        await bus.publish(channel, a_message(2))
        await inbox.has(2)
        assert bus.invalid_count == 1


@pytest.mark.parametrize("properties", raw_amqp.PROPERTIES.values(), ids=raw_amqp.PROPERTIES)
async def test_on_rabbitmq_properties_that_nobody_reads_do_no_harm(
    rabbitmq_url: str, properties: bytes
) -> None:
    channel, inbox = unique("unreadable"), Inbox()
    key = topology.event_routing_key(topology.AMQP, channel)
    async with KombuMessageBus(rabbitmq_url) as bus:
        await bus.subscribe(channel, inbox)
        await asyncio.to_thread(raw_amqp.publish_raw, rabbitmq_url, topology.EVENTS, key, b"{}", properties)
        await bus.publish(channel, a_message(2))
        await inbox.has(2)
        assert bus.invalid_count == 1


async def test_a_plain_kombu_producer_reaches_subscribers(url: str, bus: KombuMessageBus) -> None:
    channel, inbox = unique("from-kombu"), Inbox()
    await bus.subscribe(channel, inbox)
    body = a_message(5, payload={"number": 5, "text": "größer"}).model_dump(mode="json")
    await asyncio.to_thread(publish_raw, url, channel, body, serializer="json")
    await inbox.has(5)
    assert inbox.messages[0].payload["text"] == "größer"


@pytest.mark.parametrize("ours", [True, False], ids=["our transport", "kombu's transport"])
async def test_a_plain_kombu_consumer_reads_what_we_publish(
    url: str, bus: KombuMessageBus, ours: bool
) -> None:
    channel, ready, done = unique("to-kombu"), threading.Event(), threading.Event()
    got: list[dict[str, Any]] = []
    second = f"{channel}:*" if ours else None  # kombu's own knows one queue for each exchange

    def consume() -> None:
        with kombu_connection(url) if ours else kombu.Connection(url) as connection:
            driver = connection.transport.driver_type
            queues = [
                topology.event_queue(driver, pattern, f"test.{pattern}")
                for pattern in (channel, second)
                if pattern
            ]

            def take(body: dict[str, Any], message: kombu.Message) -> None:
                got.append(body)

            with connection.Consumer(queues, callbacks=[take], no_ack=True):
                while not done.is_set():
                    ready.set()
                    try:
                        connection.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        await asyncio.to_thread(ready.wait, 10)
        message = a_message(3, correlation_id="abc", payload={"number": 3, "text": 'quote " and ü'})
        while not got:  # when kombu's consumer is ready is not to be known from outside
            await bus.publish(channel, message)
            await asyncio.sleep(0.05)
        assert AgentMessage.model_validate(got[0]) == message
        if second:
            await bus.publish(f"{channel}:deep", a_message(4))
            await wait_until(lambda: any(body["payload"]["number"] == 4 for body in got))
            assert sum(body["payload"]["number"] == 4 for body in got) == 1
    finally:
        done.set()
        thread.join(10)


async def test_a_callback_that_is_cancelled_inside_goes_on_with_the_next_message(
    bus: KombuMessageBus, caplog: pytest.LogCaptureFixture
) -> None:
    channel, inbox = unique("cancelled"), Inbox()

    async def awaits_what_is_cancelled(message: AgentMessage) -> None:
        await inbox(message)
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    await bus.subscribe(channel, awaits_what_is_cancelled)
    with caplog.at_level(logging.WARNING):
        await bus.publish(channel, a_message(1))
        await bus.publish(channel, a_message(2))
        await inbox.has(1, 2)
    assert "cancelled" in caplog.text


async def test_messages_of_one_subscription_are_handled_one_after_the_other(bus: KombuMessageBus) -> None:
    channel, inbox, running = unique("ordered"), Inbox(), 0

    async def handler(message: AgentMessage) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.001 * (3 - message.payload["number"] % 3))
        running -= 1
        await inbox(message)

    await bus.subscribe(channel, handler)
    await asyncio.gather(*(bus.publish(channel, a_message(n)) for n in range(30)))
    await inbox.has(*range(30))


async def test_an_expired_message_is_dropped_at_delivery_too(bus: KombuMessageBus) -> None:
    channel, release, seen, witness = unique("late"), asyncio.Event(), Inbox(), Inbox()

    async def slow(message: AgentMessage) -> None:
        await release.wait()
        await seen(message)

    await bus.subscribe(channel, slow)
    await bus.subscribe(channel, witness)
    await bus.publish(channel, a_message(0))
    await bus.publish(channel, a_message(1, ttl_seconds=1))
    await bus.publish(channel, a_message(2, ttl_seconds=600))
    await witness.has(0, 1, 2)
    await wait_until(witness.messages[1].is_expired)
    release.set()
    await seen.has(0, 2)


async def test_answers_reach_the_asker_alone(url: str, bus: KombuMessageBus) -> None:
    channel = unique("ask")
    async with KombuMessageBus(url) as responder, KombuMessageBus(url) as bystander:

        async def answer(message: AgentMessage) -> None:
            await responder.publish(unique("nowhere"), message.create_response("r", MessageType.FEEDBACK))

        await responder.subscribe(channel, answer)
        await bystander.subscribe(unique("own"), Inbox())
        with pytest.raises(MessageBusError):
            await bystander.request(unique("nobody"), a_message(0), timeout=0.05)
        response = await bus.request(channel, a_message(1), timeout=10)
        assert response.correlation_id in responder._session.origins._known  # type: ignore[union-attr]
        assert len(bystander._session.origins) == 0  # type: ignore[union-attr]


async def test_an_answer_of_a_bus_that_saw_no_request_arrives(url: str, bus: KombuMessageBus) -> None:
    channel, questions = unique("relayed"), Inbox()
    async with KombuMessageBus(url) as listener, KombuMessageBus(url) as stranger:
        await listener.subscribe(channel, questions)
        asking = asyncio.ensure_future(bus.request(channel, a_message(1), timeout=10))
        await wait_until(lambda: questions.messages)
        answer = questions.messages[0].create_response("stranger", MessageType.FEEDBACK, {"via": "any"})
        await stranger.publish("conductor:response", answer)
        assert (await asking).payload == {"via": "any"}


async def test_everybody_who_asks_with_the_same_correlation_id_is_answered(
    url: str, bus: KombuMessageBus
) -> None:
    channel, questions = unique("shared"), Inbox()
    async with KombuMessageBus(url) as other, KombuMessageBus(url) as responder:
        await responder.subscribe(channel, questions)
        asking = [
            asyncio.ensure_future(asker.request(channel, a_message(1, correlation_id="same"), timeout=10))
            for asker in (bus, other)
        ]
        await wait_until(lambda: len(questions.messages) == 2)
        answer = questions.messages[0].create_response("responder", MessageType.FEEDBACK, {"to": "all"})
        await responder.publish("conductor:response", answer)
        assert [each.payload for each in await asyncio.gather(*asking)] == [{"to": "all"}] * 2


async def test_reply_sends_to_one_inbox(url: str, bus: KombuMessageBus) -> None:
    channel, questions = unique("inbox"), Inbox()
    async with KombuMessageBus(url) as other:
        await other.subscribe(channel, questions)
        asking = asyncio.ensure_future(bus.request(channel, a_message(1), timeout=10))
        await wait_until(lambda: questions.messages)
        await other.reply(
            bus.bus_id, questions.messages[0].create_response("o", MessageType.FEEDBACK, {"x": 1})
        )
        assert (await asking).payload == {"x": 1}


async def test_connecting_and_disconnecting_at_once_many_times(url: str) -> None:
    bus = KombuMessageBus(url)
    await asyncio.gather(*(bus.connect() for _ in range(5)))
    await bus.publish("somewhere", a_message())
    await asyncio.gather(*(bus.disconnect() for _ in range(5)))
    assert not bus.is_connected
    for _ in range(3):
        async with bus:
            await bus.publish("somewhere", a_message())


def test_a_bus_serves_one_event_loop_after_another(url: str) -> None:
    """Also when several tasks connect at once, and when nobody disconnected before a loop was closed."""
    bus, threads = KombuMessageBus(url), set(threading.enumerate())

    async def use(*, orderly: bool) -> None:
        inbox = Inbox()
        await asyncio.gather(*(bus.connect() for _ in range(3)))
        channel = unique("loops")
        await bus.subscribe(channel, inbox)
        await bus.publish(channel, a_message(1))
        await inbox.has(1)
        assert bus.published_count == 1
        if orderly:
            await bus.disconnect()

    for orderly in (True, True, False, True, False):
        asyncio.run(use(orderly=orderly))
        assert not bus.is_connected
    with pytest.raises(MessageBusError) as caught:
        asyncio.run(bus.publish(unique("loops"), a_message()))
    assert caught.value.error_code == "BUS_NOT_CONNECTED"
    asyncio.run(bus.disconnect())
    wait_until_sync(lambda: set(threading.enumerate()) <= threads)


async def test_what_is_being_published_still_goes_out_at_disconnect(url: str, bus: KombuMessageBus) -> None:
    channel, inbox = unique("last-words"), Inbox()
    await bus.subscribe(channel, inbox)
    other = KombuMessageBus(url)
    await other.connect()
    publishing = [asyncio.ensure_future(other.publish(channel, a_message(n))) for n in range(300)]
    await asyncio.sleep(0)
    await other.disconnect()
    await asyncio.gather(*publishing)
    await inbox.has(*range(300))


async def test_a_cancelled_publish_or_subscribe_leaves_nothing_behind(bus: KombuMessageBus) -> None:
    for _ in range(50):  # so that some cancellations meet the confirmation of the subscription
        channel, inbox, witness = unique("cancel"), Inbox(), Inbox()
        for operation in (bus.subscribe(channel, inbox), bus.publish(channel, a_message(1))):
            task = asyncio.ensure_future(operation)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await bus.subscribe(channel, witness)
        await bus.publish(channel, a_message(2))
        await wait_until(lambda seen=witness: 2 in seen.numbers)
        assert inbox.messages == []


@pytest.mark.parametrize("name", ["buffer_size", "publish_timeout", "connect_timeout"])
def test_settings_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        KombuMessageBus("redis://localhost", **{name: 0})  # type: ignore[arg-type]
