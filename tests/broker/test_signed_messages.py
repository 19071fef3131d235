"""With keys a bus hears only what somebody with a key sent, where it was sent, and once."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.kombu_bus import KombuMessageBus, configured_bus
from conductor.broker.message_guard import _OVERTAKEN, _Stream
from conductor.broker.refused_messages import MOST_WAITING, RefusalDesk, Refused, RefusedMessages
from conductor.broker.replay import replay_of, signed
from conductor.broker.signing import KEY as KEY_HEADER
from conductor.broker.signing import (
    NONCE,
    SIGNATURE,
    TIME,
    SignatureError,
    Signed,
    configured_signer,
    event_place,
)
from conductor.broker.transport import is_rabbitmq
from conductor.client import Conductor
from conductor.core.channels import DLQ
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import ConductorError, MessageBusError
from conductor.core.log_lines import LineFormatter
from conductor.core.messages import AgentMessage
from conductor.core.prometheus import PrometheusMetrics
from tests.support import raw_amqp
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until
from tests.support.wiretap import Wire, driver_of, wiretap

KEY, OTHER = "first-" + "a" * 32, "other-" + "b" * 32
CODES = ("unsigned", "unknown_key", "altered", "stale", "replayed")


@pytest.fixture(params=["valkey", "rabbitmq"])
def addresses(request: pytest.FixtureRequest, valkey_url: str) -> Addresses:
    redis = f"{valkey_url.rpartition('/')[0]}/14"
    return Addresses(redis if request.param == "valkey" else request.getfixturevalue("rabbitmq_url"), redis)


class Ring:
    """Makes buses with keys and without, and counts what they refuse."""

    def __init__(self, addresses: Addresses, stack: AsyncExitStack) -> None:
        self.addresses = addresses
        self.stack = stack
        self.registry = CollectorRegistry()
        self.metrics = PrometheusMetrics(self.registry)

    def config(self, keys: dict[str, str], key_id: str | None, **signing: Any) -> ConductorConfig:
        return ConductorConfig(
            broker_url=self.addresses.broker_url,
            redis={"url": self.addresses.redis_url},
            errors={"retry": {"max_retries": 1, "initial_delay": 0.01}},
            signing={"keys": keys, "key_id": key_id} | signing,
        )

    async def bus(
        self, keys: dict[str, str] | None = None, key_id: str | None = "first", **signing: Any
    ) -> KombuMessageBus:
        config = self.config({"first": KEY} if keys is None else keys, key_id, **signing)
        return await self.stack.enter_async_context(configured_bus(config, self.addresses, self.metrics))

    async def stranger(self) -> KombuMessageBus:
        """One that signs nothing."""
        return await self.bus({}, None)

    def refused(self) -> dict[str, float]:
        """What was counted."""
        values = {
            code: self.registry.get_sample_value("conductor_messages_refused_total", {"reason": code})
            for code in CODES
        }
        return {code: value for code, value in values.items() if value}

    async def conductor(self) -> Conductor:
        return await self.stack.enter_async_context(Conductor(self.config({"first": KEY}, "first")))


@pytest.fixture
async def ring(addresses: Addresses) -> AsyncIterator[Ring]:
    async with AsyncExitStack() as stack:
        yield Ring(addresses, stack)


async def letters_about(conductor: Conductor, channel: str) -> list[DeadLetter]:
    found = await conductor.dead_letters.list(limit=None)
    return [letter for letter in found if letter.channel == channel]


async def one_letter(conductor: Conductor, channel: str, code: str) -> DeadLetter:
    async def found() -> DeadLetter | None:
        return next((one for one in await letters_about(conductor, channel) if one.error_code == code), None)

    return await wait_until(found)


async def test_what_is_signed_arrives_on_channels_patterns_and_as_answers(ring: Ring) -> None:
    first, second = await ring.bus(), await ring.bus()
    channel, named, wide = unique("orders"), Inbox(), Inbox()
    await second.subscribe(channel, named)
    await second.subscribe(f"{channel[:-8]}*", wide)
    for number in range(50):
        await first.publish(channel, a_message(number))
    await named.has(*range(50))
    await wide.has(*range(50))

    async def answer(message: AgentMessage) -> None:
        if message.correlation_id == message.message_id:
            await second.publish("conductor:response", message.create_response("b", message.message_type, {}))

    await second.subscribe(question := unique("questions"), answer)
    assert (await first.request(question, a_message(), timeout=10)).sender_id == "b"
    assert (first.refused_count, second.refused_count, ring.refused()) == (0, 0, {})


async def test_what_is_not_signed_is_refused_counted_and_a_dead_letter(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(LineFormatter("json"))
    bus, stranger, conductor = await ring.bus(), await ring.stranger(), await ring.conductor()
    channel, inbox, announced = unique("orders"), Inbox(), Inbox()
    await bus.subscribe(channel, inbox)
    await bus.subscribe(DLQ, announced)
    message = a_message(1)
    await stranger.publish(channel, message)
    letter = await one_letter(conductor, channel, "MESSAGE_UNSIGNED")
    assert (letter.reason, letter.message_id) == ("refused", message.message_id)
    assert json.loads(letter.body)["payload"] == {"number": 1}
    await bus.publish(channel, a_message(2))
    await inbox.has(2)
    assert (bus.refused_count, ring.refused()) == (1, {"unsigned": 1})
    lines = [json.loads(line) for line in caplog.text.splitlines() if channel in line]
    assert {line["event"].split()[0] for line in lines} == {"What", "Dead"}
    assert {line["message_id"] for line in lines} == {message.message_id}
    assert f"message {message.message_id} on {channel}, MESSAGE_UNSIGNED" in caplog.text
    await wait_until(lambda: any(letter.letter_id in one.model_dump_json() for one in announced.messages))
    report = await conductor.dead_letters.replay(letter.letter_id)
    assert "whoever sent it can publish it again" in report.refused[letter.letter_id]


async def test_altered_repeated_and_misplaced_messages_are_refused(ring: Ring) -> None:
    bus, conductor = await ring.bus(), await ring.conductor()
    url, channel, elsewhere, inbox = ring.addresses.broker_url, unique("orders"), unique("others"), Inbox()
    await bus.subscribe(channel, inbox)
    await bus.subscribe(elsewhere, inbox)
    with wiretap(url, channel) as tap:
        await bus.publish(channel, a_message(1))
        copy = await asyncio.to_thread(tap.next)
    await inbox.has(1)
    there = topology.event_routing_key(driver_of(url), elsewhere)
    forgeries = [
        (channel, "MESSAGE_ALTERED", replace(copy, body=copy.body.replace(b'"number":1', b'"number":2'))),
        (channel, "MESSAGE_ALTERED", replace(copy, properties={"reply_to": "me"})),
        (channel, "MESSAGE_ALTERED", copy.under(conductor_deadline=1.0)),
        (channel, "MESSAGE_ALTERED", copy.under(conductor_nonce="x.1")),
        (channel, "MESSAGE_ALTERED", copy.under(conductor_signature=None)),
        (channel, "MESSAGE_UNKNOWN_KEY", copy.under(conductor_key="mine")),
        (elsewhere, "MESSAGE_ALTERED", replace(copy, key=there)),
        (channel, "MESSAGE_REPLAYED", copy),
    ]
    for place, code, forged in forgeries:
        before = bus.refused_count
        await asyncio.to_thread(forged.send, url)
        letter = await one_letter(conductor, place, code)
        await conductor.dead_letters.purge(letter.letter_id)
        assert bus.refused_count == before + 1
    assert ring.refused() == {"altered": 6, "unknown_key": 1, "replayed": 1}
    await bus.publish(channel, a_message(3))
    await inbox.has(1, 3)


async def test_what_was_signed_long_ago_is_refused(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    bus, conductor = await ring.bus(), await ring.conductor()
    channel, inbox, body = unique("orders"), Inbox(), a_message(1).model_dump_json().encode()
    await bus.subscribe(channel, inbox)
    signer = configured_signer(conductor.config)
    assert signer is not None
    for shift in (-301.0, 301.0):
        with monkeypatch.context() as patch:
            then = time.time() + shift
            patch.setattr(time, "time", lambda then=then: then)
            headers = signer.sign(Signed(event_place(channel), body, {}), f"{uuid.uuid4().hex}.1")
        key = topology.event_routing_key(driver_of(ring.addresses.broker_url), channel)
        await asyncio.to_thread(Wire(topology.EVENTS, key, body, headers).send, ring.addresses.broker_url)
        letter = await one_letter(conductor, channel, "MESSAGE_STALE")
        await conductor.dead_letters.purge(letter.letter_id)
    assert (ring.refused(), inbox.messages) == ({"stale": 2}, [])


async def test_what_was_signed_for_another_purpose_is_refused(ring: Ring) -> None:
    """As what is replayed into the queue of a group, or is a task."""
    bus, conductor = await ring.bus(), await ring.conductor()
    url, channel, inbox, body = (
        ring.addresses.broker_url,
        unique("x"),
        Inbox(),
        a_message(1).model_dump_json(),
    )
    await bus.subscribe(channel, inbox)
    signer = configured_signer(conductor.config)
    assert signer is not None
    key = topology.event_routing_key(driver_of(url), channel)
    letter = DeadLetter(reason="rejected", body=body, queue=topology.group_queue_name("shop", channel))
    for headers in (
        signer.sign(Signed(event_place(channel), body, {})),
        signed(replay_of(letter, str(letter.queue)), signer).headers,
    ):
        await asyncio.to_thread(Wire(topology.EVENTS, key, body.encode(), headers).send, url)
        found = await one_letter(conductor, channel, "MESSAGE_ALTERED")
        await conductor.dead_letters.purge(found.letter_id)
    await bus.publish(channel, a_message(2))
    await inbox.has(2)


async def test_a_busy_loop_does_not_make_messages_stale(ring: Ring) -> None:
    bus, sender, channel, inbox = await ring.bus(window_seconds=0.5), await ring.bus(), unique("x"), Inbox()
    begun = asyncio.Event()

    async def blocks(message: AgentMessage) -> None:
        if message.payload["number"] == 1:
            await sender.publish(channel, a_message(2))
            time.sleep(1)  # noqa: ASYNC251 - as an agent that does not await
            begun.set()

    await bus.subscribe(channel, blocks)
    await bus.subscribe(channel, inbox)
    await sender.publish(channel, a_message(1))
    await begun.wait()
    await inbox.has(1, 2)
    assert bus.refused_count == 0


async def test_many_who_refuse_a_message_make_one_letter_of_it(ring: Ring) -> None:
    buses, stranger, conductor = [await ring.bus() for _ in range(4)], await ring.stranger(), None
    channel, inbox = unique("orders"), Inbox()
    for bus in buses:
        await bus.subscribe(channel, inbox)
    await stranger.publish(channel, a_message(1))
    await wait_until(lambda: [bus.refused_count for bus in buses] == [1] * 4)
    for bus in buses:  # with which all that they were about to send is sent
        await bus.disconnect()
    conductor = await ring.conductor()
    await one_letter(conductor, channel, "MESSAGE_UNSIGNED")
    assert len(await letters_about(conductor, channel)) == 1


async def test_a_forged_answer_is_none(ring: Ring) -> None:
    bus, conductor = await ring.bus(), await ring.conductor()
    channel, heard = unique("questions"), Inbox()
    asked = asyncio.Event()

    async def forge(message: AgentMessage) -> None:
        heard.messages.append(message)
        asked.set()

    await (await ring.bus()).subscribe(channel, forge)
    asking = asyncio.ensure_future(bus.request(channel, a_message(), timeout=5))
    await asyncio.wait_for(asked.wait(), 10)
    [question] = heard.messages
    forged = question.create_response("mallory", question.message_type, {})
    wire = Wire(
        topology.REPLIES,
        bus.bus_id,
        forged.model_dump_json().encode(),
        properties={"correlation_id": question.correlation_id},
    )
    await asyncio.to_thread(wire.send, ring.addresses.broker_url)
    await wait_until(lambda: bus.refused_count == 1)
    assert not asking.done()
    honest = question.create_response("bob", question.message_type, {})
    await (await ring.bus()).reply(bus.bus_id, honest)
    assert (await asking).sender_id == "bob"
    assert ring.refused() == {"unsigned": 1}
    await one_letter(conductor, _channel_of_inbox(bus, ring), "MESSAGE_UNSIGNED")


def _channel_of_inbox(bus: KombuMessageBus, ring: Ring) -> str:
    return topology.channel_of(driver_of(ring.addresses.broker_url), bus.bus_id)


async def test_keys_are_exchanged_one_after_the_other(ring: Ring) -> None:
    both, channel, inbox = {"first": KEY, "other": OTHER}, unique("orders"), Inbox()
    bus = await ring.bus(both)
    await bus.subscribe(channel, inbox)
    senders = [await ring.bus(), await ring.bus(both, "other"), await ring.bus({"other": OTHER}, "other")]
    for number, sender in enumerate(senders):
        await sender.publish(channel, a_message(number))
    await inbox.has(0, 1, 2)
    old = await ring.bus()
    await old.subscribe(channel, Inbox())
    await senders[2].publish(channel, a_message(3))
    await wait_until(lambda: old.refused_count == 1)
    assert ring.refused() == {"unknown_key": 1}


async def test_unsigned_messages_are_taken_while_that_is_allowed(ring: Ring) -> None:
    bus, stranger = await ring.bus(accept_unsigned=True), await ring.stranger()
    channel, inbox = unique("orders"), Inbox()
    await bus.subscribe(channel, inbox)
    await stranger.publish(channel, a_message(1))
    await inbox.has(1)


async def test_a_group_refuses_what_it_should_and_tries_again_what_it_should(
    ring: Ring, group: Callable[[str], Any]
) -> None:
    bus, stranger, conductor = await ring.bus(), await ring.stranger(), await ring.conductor()
    channel, seen = unique("orders"), []

    async def member(message: AgentMessage) -> None:
        seen.append(message.payload["number"])
        if seen.count(1) == 1:
            raise ConductorError("not now", "TRANSIENT_ERROR")

    await bus.subscribe(channel, member, group="shop")
    await stranger.publish(channel, a_message(7))
    letter = await one_letter(conductor, channel, "MESSAGE_UNSIGNED")
    await bus.publish(channel, a_message(1))
    await wait_until(lambda: seen == [1, 1])
    assert (letter.reason, ring.refused()) == ("refused", {"unsigned": 1})
    # Who replays a letter vouches for it.
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    await wait_until(lambda: seen == [1, 1, 7])
    copy = await group(channel)
    await wait_until(lambda: seen == [1, 1, 7, 9])
    await asyncio.to_thread(copy.send, ring.addresses.broker_url)
    replayed = await one_letter(conductor, channel, "MESSAGE_REPLAYED")
    assert (replayed.queue, seen) == (topology.group_queue_name("shop", channel), [1, 1, 7, 9])
    await asyncio.to_thread(copy.under(conductor_signature="0" * 64).send, ring.addresses.broker_url)
    await one_letter(conductor, channel, "MESSAGE_ALTERED")
    assert ring.refused() == {"unsigned": 1, "replayed": 1, "altered": 1}
    await bus.delete_group(channel, "shop")


@pytest.fixture
def group(ring: Ring) -> Callable[[str], Any]:
    """Publishes number 9, and gives a copy of it that goes into the queue of the group at once."""

    async def publish_and_copy(channel: str) -> Wire:
        url = ring.addresses.broker_url
        with wiretap(url, channel) as tap:
            await (await ring.bus()).publish(channel, a_message(9))
            wire = await asyncio.to_thread(tap.next)
        queue = topology.group_queue_name("shop", channel)
        return replace(wire, exchange="", key=queue).under(**{topology.CHANNEL_HEADER: channel})

    return publish_and_copy


async def test_a_copy_is_refused_while_the_original_is_worked_on_and_tried_again(
    ring: Ring, group: Callable[[str], Any]
) -> None:
    bus, conductor, channel = await ring.bus(), await ring.conductor(), unique("orders")
    seen: list[int] = []
    busy, go = asyncio.Event(), asyncio.Event()

    async def member(message: AgentMessage) -> None:
        seen.append(message.metadata["attempt"])
        busy.set()
        await go.wait()
        if len(seen) == 1:
            raise ConductorError("not now", "TRANSIENT_ERROR")

    async def other(message: AgentMessage) -> None:
        await member(message)

    await bus.subscribe(channel, member, group="shop")
    await bus.subscribe(channel, other, group="shop")
    copy = await group(channel)
    await busy.wait()
    await asyncio.to_thread(copy.send, ring.addresses.broker_url)
    await one_letter(conductor, channel, "MESSAGE_REPLAYED")
    go.set()
    await wait_until(lambda: len(seen) == 2)
    await bus.disconnect()
    assert (seen, ring.refused()) == ([1, 2], {"replayed": 1})


async def test_a_flood_of_refused_messages_does_not_wait_for_its_letters(valkey_url: str) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/15"
    desk = RefusalDesk(RefusedMessages(url, url, 5, None))
    error, channel = SignatureError("The message is not signed.", "MESSAGE_UNSIGNED"), unique("flood")
    with redis.Redis.from_url(url) as client:
        client.client_pause(500)  # all of them come before the first letter is there
    for number in range(MOST_WAITING * 5):
        desk.keep(Refused(channel, str(number), {}), error)
    await desk.close()
    async with Conductor(ConductorConfig(broker_url=url, redis={"url": url})) as conductor:
        assert len(await letters_about(conductor, channel)) == MOST_WAITING


@pytest.mark.parametrize("field", [raw_amqp.nested(900), b"\x01\xfft\x01"], ids=["deep", "no text"])
async def test_headers_that_cannot_be_signed_stop_no_bus_and_no_group(ring: Ring, field: bytes) -> None:
    url = ring.addresses.broker_url
    if not is_rabbitmq(url):
        pytest.skip("headers are JSON")
    bus, channel, alone, shared = await ring.bus(), unique("unsignable"), Inbox(), Inbox()
    await bus.subscribe(channel, alone)
    await bus.subscribe(channel, shared, group="judges")
    stamp = {KEY_HEADER: "first", TIME: "1", NONCE: "a.1", SIGNATURE: "0"}
    properties = raw_amqp.with_headers(*(raw_amqp.text(*each) for each in stamp.items()), field)
    key = topology.event_routing_key(topology.AMQP, channel)
    await asyncio.to_thread(raw_amqp.publish_raw, url, topology.EVENTS, key, b"{}", properties)
    await bus.publish(channel, a_message(2))
    await alone.has(2)
    await shared.has(2)
    await bus.delete_group(channel, "judges")


async def test_a_group_on_rabbitmq_needs_a_redis_to_know_copies(rabbitmq_url: str) -> None:
    config = ConductorConfig(signing={"keys": {"first": KEY}, "key_id": "first"})
    async with KombuMessageBus(rabbitmq_url, signer=configured_signer(config)) as bus:
        with pytest.raises(MessageBusError, match="`signing` needs a Redis") as refused:
            await bus.subscribe(unique("orders"), Inbox(), group="shop")
    assert refused.value.error_code == "DEDUPLICATION_UNAVAILABLE"


def test_the_memory_of_a_sender_knows_each_number_once_in_any_order() -> None:
    stream = _Stream()
    order = [5, 3, 4, 1, 2, 900, 6, _OVERTAKEN + 5, 7, _OVERTAKEN * 3]
    assert [stream.take(number) for number in order] == [True] * len(order)
    assert not any(stream.take(number) for number in order)
    # So far behind that nobody knows: it counts as a copy.
    assert not stream.take(_OVERTAKEN * 2)
    assert stream.take(_OVERTAKEN * 2 + 1)
