"""The promises of the message bus about delivery (1 to 4 and 8), for every implementation."""

import asyncio
import inspect
import logging
from datetime import UTC, datetime, timedelta

import pytest

from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until


async def test_conforms_to_the_abstract_class(bus: MessageBus) -> None:
    assert isinstance(bus, MessageBus)
    for name, method in inspect.getmembers(MessageBus, inspect.iscoroutinefunction):
        own = getattr(type(bus), name)
        assert inspect.iscoroutinefunction(own)
        wanted = inspect.signature(method).parameters
        assert list(inspect.signature(own).parameters)[: len(wanted)] == list(wanted)
    assert inspect.signature(type(bus).request).parameters["timeout"].default == 30.0


# Promise 1: every live subscriber, once, on its channel only.


async def test_basic_delivery(bus: MessageBus) -> None:
    channel, inbox = unique("basic"), Inbox()
    await bus.subscribe(channel, inbox)
    sent = a_message(7, metadata={"note": "grüße ✓", "nested": {"list": [1, 2.5, None, True]}})
    await bus.publish(channel, sent)
    await inbox.has(7)
    assert inbox.messages[0] == sent


async def test_no_subscriber_is_no_error(bus: MessageBus) -> None:
    await bus.publish(unique("nobody"), a_message())
    assert bus.published_count == 1


async def test_fan_out_to_every_subscriber(bus: MessageBus) -> None:
    channel, inboxes = unique("fan"), [Inbox(), Inbox(), Inbox()]
    for inbox in inboxes:
        await bus.subscribe(channel, inbox)
    await bus.publish(channel, a_message(1))
    await bus.publish(channel, a_message(2))
    for inbox in inboxes:
        await inbox.has(1, 2)


async def test_a_large_message_arrives_whole(bus: MessageBus) -> None:
    channel, inbox = unique("large"), Inbox()
    await bus.subscribe(channel, inbox)
    large = a_message(1, payload={"number": 1, "text": 'ä"\n' * 160_000})
    await bus.publish(channel, large)
    await bus.publish(channel, a_message(2))
    await inbox.has(1, 2)
    assert inbox.messages[0] == large


async def test_the_same_message_published_twice_arrives_twice(bus: MessageBus) -> None:
    channel, inbox, message = unique("twice"), Inbox(), a_message(1)
    await bus.subscribe(channel, inbox)
    await bus.publish(channel, message)
    await bus.publish(channel, message)
    await bus.publish(channel, a_message(2))
    await inbox.has(1, 1, 2)


async def test_subscribing_a_callback_twice_is_one_subscription(bus: MessageBus) -> None:
    channel, inbox = unique("again"), Inbox()
    await bus.subscribe(channel, inbox)
    await bus.subscribe(channel, inbox)
    await bus.publish(channel, a_message(1))
    await bus.publish(channel, a_message(2))
    await inbox.has(1, 2)


async def test_a_message_is_no_ones_to_change(bus: MessageBus) -> None:
    channel, inbox, sent = unique("copy"), Inbox(), a_message(1)

    async def vandal(message: AgentMessage) -> None:
        message.payload["number"] = -1

    await bus.subscribe(channel, vandal)
    await bus.subscribe(channel, inbox)
    await bus.publish(channel, sent)
    await inbox.has(1)
    assert sent.payload == {"number": 1}


async def test_channels_are_isolated(bus: MessageBus) -> None:
    base = unique("isolated")
    left, right = Inbox(), Inbox()
    await bus.subscribe(f"{base}:left", left)
    await bus.subscribe(f"{base}:right", right)
    await bus.publish(f"{base}:right", a_message(1))
    await bus.publish(base, a_message(2))
    await bus.publish(f"{base}:left:deeper", a_message(3))
    await bus.publish(f"{base}:left", a_message(4))
    await left.has(4)
    await right.has(1)


@pytest.mark.parametrize("name", ["a.b#c", "a?b[c]d\\e", "ä/ö", "conductor:agent:x.y", "a$b^c"])
async def test_names_with_characters_special_to_a_broker(bus: MessageBus, name: str) -> None:
    channel, inbox = unique(name), Inbox()
    await bus.subscribe(channel, inbox)
    await bus.publish(channel.replace("b", "x"), a_message(1))
    await bus.publish(channel, a_message(2))
    expected = [2] if "b" in channel else [1, 2]
    await inbox.has(*expected)


async def test_order_of_one_publisher_is_kept(bus: MessageBus) -> None:
    channel, inbox = unique("order"), Inbox()
    await bus.subscribe(channel, inbox)
    await asyncio.gather(*(bus.publish(channel, a_message(number)) for number in range(500)))
    await inbox.has(*range(500))


# Patterns.


async def test_a_pattern_receives_every_channel_it_matches(bus: MessageBus) -> None:
    base = unique("conductor")
    runs, everything, one = Inbox(), Inbox(), Inbox()
    await bus.subscribe(f"{base}:workflow:*", runs)
    await bus.subscribe(f"{base}:*", everything)
    await bus.subscribe(f"{base}:workflow:1", one)
    for number, channel in enumerate(["workflow:1", "workflow:2", "workflow:2:step", "agent:1", "workflow"]):
        await bus.publish(f"{base}:{channel}", a_message(number))
    await everything.has(0, 1, 2, 3, 4)
    await runs.has(0, 1, 2)
    await one.has(0)


async def test_a_star_stands_for_any_characters_anywhere(bus: MessageBus) -> None:
    base, inbox = unique("star"), Inbox()
    await bus.subscribe(f"{base}:a*b:c", inbox)
    for number, channel in enumerate(["ab:c", "axb:c", "ax:y.zb:c", "ab:c:d", "a:c", "ab.c"]):
        await bus.publish(f"{base}:{channel}", a_message(number))
    await bus.publish(f"{base}:ab:c", a_message(99))
    await inbox.has(0, 1, 2, 99)


async def test_overlapping_patterns_are_separate_subscriptions(bus: MessageBus) -> None:
    base, inbox = unique("overlap"), Inbox()
    await bus.subscribe(f"{base}:*", inbox)
    await bus.subscribe(f"{base}:x", inbox)
    await bus.publish(f"{base}:x", a_message(1))
    await wait_until(lambda: len(inbox.messages) == 2)
    await bus.unsubscribe(f"{base}:*")
    await bus.publish(f"{base}:x", a_message(2))
    await wait_until(lambda: len(inbox.messages) == 3)
    assert inbox.numbers == [1, 1, 2]


# Promise 2: unsubscribe.


async def test_unsubscribe_removes_all_callbacks_of_the_channel(bus: MessageBus) -> None:
    channel, witness_channel = unique("gone"), unique("witness")
    first, second, witness = Inbox(), Inbox(), Inbox()
    await bus.subscribe(channel, first)
    await bus.subscribe(channel, second)
    await bus.subscribe(witness_channel, witness)
    await bus.unsubscribe(channel)
    await bus.publish(channel, a_message(1))
    await bus.publish(witness_channel, a_message(2))
    await witness.has(2)
    assert first.messages == second.messages == []


async def test_unsubscribe_touches_no_other_channel(bus: MessageBus) -> None:
    base, inbox = unique("other"), Inbox()
    await bus.subscribe(f"{base}:stays", inbox)
    await bus.subscribe(f"{base}:goes", inbox)
    await bus.unsubscribe(f"{base}:goes")
    await bus.publish(f"{base}:goes", a_message(1))
    await bus.publish(f"{base}:stays", a_message(2))
    await inbox.has(2)


async def test_unsubscribe_is_idempotent(bus: MessageBus) -> None:
    channel, inbox = unique("idem"), Inbox()
    await bus.unsubscribe(channel)
    await bus.subscribe(channel, inbox)
    await bus.unsubscribe(channel)
    await bus.unsubscribe(channel)
    await bus.subscribe(channel, inbox)
    await bus.publish(channel, a_message(1))
    await inbox.has(1)


async def test_a_callback_may_unsubscribe_itself(bus: MessageBus) -> None:
    channel, seen = unique("self"), []

    async def once(message: AgentMessage) -> None:
        seen.append(message)
        await bus.unsubscribe(channel)

    witness = Inbox()
    await bus.subscribe(channel, once)
    await bus.publish(channel, a_message(1))
    await wait_until(lambda: seen)
    await bus.subscribe(channel, witness)
    await bus.publish(channel, a_message(2))
    await witness.has(2)
    assert len(seen) == 1


# Promise 3: failing callbacks.


async def test_callback_errors_are_isolated(bus: MessageBus, caplog: pytest.LogCaptureFixture) -> None:
    channel, inbox = unique("fail"), Inbox()

    async def failing(message: AgentMessage) -> None:
        raise RuntimeError("deliberate")

    await bus.subscribe(channel, failing)
    await bus.subscribe(channel, inbox)
    with caplog.at_level(logging.ERROR):
        message = a_message(1)
        await bus.publish(channel, message)
        await bus.publish(channel, a_message(2))
        await inbox.has(1, 2)
        await wait_until(lambda: message.message_id in caplog.text)
    assert "deliberate" in caplog.text


# Promise 4: expiry and the count.


async def test_expired_messages_are_dropped_and_not_counted(bus: MessageBus) -> None:
    channel, inbox = unique("ttl"), Inbox()
    await bus.subscribe(channel, inbox)
    old = datetime.now(UTC) - timedelta(seconds=5)
    await bus.publish(channel, a_message(1, ttl_seconds=1, timestamp=old))
    assert bus.published_count == 0
    await bus.publish(channel, a_message(2, ttl_seconds=60))
    await inbox.has(2)
    assert bus.published_count == 1


async def test_published_count_counts_and_is_reset_at_disconnect(bus: MessageBus) -> None:
    assert bus.published_count == 0
    for number in range(3):
        await bus.publish(unique("count"), a_message(number))
    assert bus.published_count == 3
    await bus.disconnect()
    assert bus.published_count == 0
    await bus.connect()
    assert bus.published_count == 0


# Promise 8: when the calls return.


async def test_a_message_right_after_subscribe_is_received(bus: MessageBus) -> None:
    for number in range(20):
        channel, inbox = unique("right-after"), Inbox()
        await bus.subscribe(channel, inbox)
        await bus.publish(channel, a_message(number))
        await inbox.has(number)


async def test_in_memory_publish_returns_after_the_callbacks_ran() -> None:
    async with InMemoryMessageBus() as bus:
        seen = []

        async def slow(message: AgentMessage) -> None:
            await asyncio.sleep(0.02)
            seen.append(message)

        await bus.subscribe("slow", slow)
        await bus.publish("slow", a_message(1))
        assert len(seen) == 1


async def test_a_slow_callback_holds_up_no_other(bus: MessageBus) -> None:
    channel, release, inbox = unique("slow"), asyncio.Event(), Inbox()

    async def slow(message: AgentMessage) -> None:
        await release.wait()

    await bus.subscribe(channel, slow)
    await bus.subscribe(channel, inbox)
    publishing = [asyncio.ensure_future(bus.publish(channel, a_message(n))) for n in range(3)]
    await inbox.has(0, 1, 2)
    release.set()
    await asyncio.gather(*publishing)


# Bad input.


@pytest.mark.parametrize("channel", ["", "a b", "tab\there", "nul\0", "x" * 201, "ü" * 101])
async def test_bad_channels_are_refused(bus: MessageBus, channel: str) -> None:
    for operation in (
        bus.publish(channel, a_message()),
        bus.subscribe(channel, Inbox()),
        bus.unsubscribe(channel),
        bus.request(channel, a_message()),
    ):
        with pytest.raises(MessageBusError) as raised:
            await operation
        assert raised.value.error_code == "INVALID_CHANNEL"


async def test_what_is_no_message_is_refused(bus: MessageBus) -> None:
    for wrong in ({"sender_id": "me"}, "text", None, a_message(payload={"x": object()})):
        for operation in (bus.publish("somewhere", wrong), bus.request("somewhere", wrong)):  # type: ignore[arg-type]
            with pytest.raises(MessageBusError) as raised:
                await operation
            assert raised.value.error_code == "INVALID_MESSAGE"
    with pytest.raises(MessageBusError) as raised:
        await bus.subscribe("somewhere", "not callable")  # type: ignore[arg-type]
    assert raised.value.error_code == "INVALID_CALLBACK"
