"""What groups over a broker promise beyond the contract, and what they leave there."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from conductor.broker.addresses import Addresses
from conductor.broker.dead_letters import decode_body
from conductor.broker.group_amqp import _rounded
from conductor.broker.kombu_bus import KombuMessageBus, configured_bus
from conductor.broker.topology import (
    CHANNEL_HEADER,
    GROUP_REGISTRY,
    TRIAL_HEADER,
    dead_letter_queue,
    group_queue,
    group_queue_name,
)
from conductor.broker.transport import kombu_connection
from conductor.core.channels import DLQ, matches
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import ConductorError, ConfigurationError, MessageBusError
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from tests.support import rabbitmq
from tests.support.buses import Inbox, a_message, unique
from tests.support.inspecting import connections, traces
from tests.support.letters import filed_letters
from tests.support.waiting import wait_until

QUICK = RetryPolicy(max_retries=1, initial_delay=0.05, max_delay=0.1)


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")  # type: ignore[no-any-return]


@pytest.fixture
async def bus(url: str) -> AsyncIterator[KombuMessageBus]:
    async with KombuMessageBus(url, retry_policy=QUICK, restore_interval=0.2) as bus:
        yield bus


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


def put(url: str, queue: str, body: bytes, headers: dict[str, Any]) -> None:
    """Put a message into a queue as any program with kombu would, and as dead letters are replayed."""
    with kombu_connection(url) as connection:
        connection.Producer().publish(
            body,
            exchange="",
            routing_key=queue,
            headers=headers,
            delivery_mode=2,
            content_type="application/json",
            content_encoding="utf-8",
        )


def waiting(url: str, queue: str) -> int:
    """How many messages wait in a queue."""
    with kombu_connection(url) as connection:
        declared = connection.default_channel.queue_declare(queue, passive=True)
        return int(declared.message_count)


async def a_rejected_message(bus: KombuMessageBus, channel: str, group: str, **changes: Any) -> AgentMessage:
    async def refuse(message: AgentMessage) -> None:
        raise ConductorError("wrong", "BAD_INPUT")

    dead, sent = Inbox(), a_message(1, **changes)
    await bus.subscribe(DLQ, dead)
    await bus.subscribe(channel, refuse, group=group)
    await bus.publish(channel, sent)
    await wait_until(
        lambda: sent.message_id in [m.metadata["dead_letter"]["message_id"] for m in dead.messages]
    )
    await bus.unsubscribe(channel)
    await bus.unsubscribe(DLQ)
    return sent


async def test_a_dead_letter_holds_the_original_and_can_be_put_back(
    url: str, bus: KombuMessageBus, group: str
) -> None:
    channel, inbox = unique("letter"), Inbox()
    sent = await a_rejected_message(bus, channel, group, metadata={"note": "grüße"}, correlation_id="c-1")
    (letter,) = filed_letters(url, sent.message_id)
    assert AgentMessage.model_validate_json(decode_body(letter)) == sent
    assert letter.queue == group_queue_name(group, channel)
    assert letter.channel == letter.headers[CHANNEL_HEADER] == channel
    assert TRIAL_HEADER not in letter.headers
    assert letter.properties["correlation_id"] == "c-1"
    assert letter.traceback is not None
    assert "wrong" in letter.traceback

    put(url, letter.queue, decode_body(letter), letter.headers)
    await bus.subscribe(channel, inbox, group=group)
    await inbox.has(1)
    assert inbox.messages[0].metadata == {"note": "grüße", "attempt": 1, "redelivered": False}


async def test_what_is_put_into_the_queue_is_noticed_by_members_that_wait(
    url: str, bus: KombuMessageBus, group: str
) -> None:
    channel, inbox = unique("put"), Inbox()
    await bus.subscribe(channel, inbox, group=group)
    put(url, group_queue_name(group, channel), a_message(1).model_dump_json().encode(), {})
    await inbox.has(1)


@pytest.mark.parametrize("body", [b"{", b'{"valid": "json"}', b"\xff\xfe"])
async def test_what_is_no_message_is_a_dead_letter(
    url: str, bus: KombuMessageBus, group: str, body: bytes
) -> None:
    channel, dead, inbox = unique("nonsense"), Inbox(), Inbox()
    queue = group_queue_name(group, channel)
    await bus.subscribe(DLQ, dead)
    await bus.subscribe(channel, inbox, group=group)
    put(url, queue, body, {})

    def ours() -> list[DeadLetter]:
        return [letter for letter in filed_letters(url) if letter.queue == queue]

    await wait_until(lambda: [m for m in dead.messages if m.metadata["dead_letter"]["queue"] == queue])
    (letter,) = ours()
    assert letter.reason == "undecodable"
    assert decode_body(letter) == body
    await bus.publish(channel, a_message(2))
    await inbox.has(2)


async def test_a_callback_that_fails_sees_nothing_of_its_trials_in_the_letter(
    url: str, bus: KombuMessageBus, group: str
) -> None:
    channel, dead, sent = unique("exhausted"), Inbox(), a_message(1)

    async def fail(message: AgentMessage) -> None:
        raise RuntimeError("always")

    await bus.subscribe(DLQ, dead)
    await bus.subscribe(channel, fail, group=group)
    await bus.publish(channel, sent)
    await wait_until(lambda: filed_letters(url, sent.message_id))
    (letter,) = filed_letters(url, sent.message_id)
    assert (letter.reason, letter.attempts) == ("retries_exhausted", 2)
    assert set(letter.headers) - {"redelivered"} == {CHANNEL_HEADER}  # that one is of having looked
    assert AgentMessage.model_validate_json(decode_body(letter)) == sent


async def test_nothing_is_left_of_a_message_that_was_handled(
    url: str, bus: KombuMessageBus, group: str
) -> None:
    channel, inbox = unique("clean"), Inbox()
    queue = group_queue_name(group, f"{channel}*b:x")
    await bus.subscribe(f"{channel}*b:x", inbox, group=group)
    await bus.publish(f"{channel}ab:x", a_message(1))
    await bus.publish(f"{channel}ac:x", a_message(2))  # RabbitMQ delivers it, the member has to refuse it
    await bus.publish(f"{channel}b:x", a_message(3))
    await inbox.has(1, 3)
    await bus.disconnect()
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            assert list(client.scan_iter(f"{queue}*")) == []
    else:
        assert waiting(url, queue) == 0


async def test_a_deleted_group_leaves_no_trace(url: str, group: str) -> None:
    channel, clean, before = unique("gone"), traces(url), connections(url)
    async with KombuMessageBus(url) as bus:
        await bus.subscribe(channel, Inbox(), group=group)
        await bus.unsubscribe(channel)
        await bus.publish(channel, a_message(1))
        await bus.delete_group(channel, group)
    await wait_until(lambda: connections(url) <= before, interval=0.2)
    assert traces(url) <= clean


async def test_a_bus_without_groups_has_no_thread_and_no_connection_for_them(
    bus: KombuMessageBus,
) -> None:
    await bus.subscribe(unique("plain"), Inbox())
    assert bus._session is not None
    assert bus._session.groups._thread is None


async def test_a_member_whose_group_is_full_of_work_leaves_the_event_loop_alone(
    bus: KombuMessageBus, group: str
) -> None:
    channel, handled, others = unique("busy"), 0, 0

    async def member(message: AgentMessage) -> None:
        nonlocal handled
        handled += 1

    await bus.subscribe(channel, member, group=group)
    await asyncio.gather(*(bus.publish(channel, a_message(number)) for number in range(300)))
    while handled < 300:
        others += 1
        await asyncio.sleep(0)
    assert others > 300


# RabbitMQ.


async def test_on_rabbitmq_the_queue_is_durable_and_the_messages_are_persistent(
    rabbitmq_url: str, group: str
) -> None:
    channel = unique("durable")
    async with KombuMessageBus(rabbitmq_url) as bus:
        await bus.subscribe(channel, Inbox(), group=group)
        await bus.unsubscribe(channel)
        await bus.publish(channel, a_message(1))
    name = group_queue_name(group, channel)
    assert [name, "true"] in rabbitmq.list_objects("queues", rabbitmq_url, "name", "durable")
    with kombu_connection(rabbitmq_url) as connection:
        message = group_queue(group, channel)(connection.default_channel).get()
    assert message is not None
    assert message.properties["delivery_mode"] == 2


async def test_a_window_on_rabbitmq_needs_a_redis_and_says_so(rabbitmq_url: str, group: str) -> None:
    async with KombuMessageBus(rabbitmq_url) as bus:
        with pytest.raises(MessageBusError) as caught:
            await bus.subscribe(unique("window"), Inbox(), group=group, deduplicate=60)
    assert caught.value.error_code == "DEDUPLICATION_UNAVAILABLE"
    assert "dedup_url" in caught.value.message


async def test_a_member_whose_queue_somebody_deletes_goes_without_the_others(
    rabbitmq_url: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    channel, other, inbox = unique("deleted"), unique("other"), Inbox()
    async with KombuMessageBus(rabbitmq_url) as bus, KombuMessageBus(rabbitmq_url) as operator:
        await bus.subscribe(channel, inbox, group=group)
        await bus.subscribe(other, inbox, group=group)
        await operator.delete_group(channel, group)
        await wait_until(lambda: "receives nothing more" in caplog.text)
        await bus.publish(channel, a_message(1))
        await bus.publish(other, a_message(2))
        await inbox.has(2)


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0, 0), (0.0004, 0), (0.005, 5), (0.0567, 56), (1.07, 1000), (61.9, 61000)]
)
def test_delays_are_rounded_down_to_two_digits(seconds: float, milliseconds: int) -> None:
    assert _rounded(seconds) == milliseconds


# Redis.


@pytest.mark.parametrize(
    "pattern",
    [
        "{}:a",
        "{}:*",
        "*{}:a",
        "{}:a*",
        "{}:a*b*c",
        "{}:**b",
        "{}:%a",
        "{}:*.*",
        "{}:a*a",
        "{}:ä*",
        "{}*a*a*a",
    ],
)
async def test_on_redis_a_group_gets_exactly_what_its_pattern_matches(valkey_url: str, pattern: str) -> None:
    base = unique("match")
    shared = pattern.replace("{}", base)
    names = [
        "a",
        "aa",
        "aaa",
        "ab",
        "abc",
        "aXbYc",
        "acb",
        "abcb",
        "b",
        "%a",
        "xa",
        ".",
        "x.y",
        "ä",
        "äx",
        "",
    ]
    channels = [f"{base}:{name}" for name in names]
    async with KombuMessageBus(valkey_url) as bus:
        inbox = Inbox()
        await bus.subscribe(shared, inbox, group="matching")
        await asyncio.gather(*(bus.publish(channel, a_message(n)) for n, channel in enumerate(channels)))
        await bus.publish(shared.replace("*", "end:"), a_message(99))
        expected = [number for number, channel in enumerate(channels) if matches(shared, channel)]
        last = [99] if matches(shared, shared.replace("*", "end:")) else []
        await inbox.has(*expected, *last)
        await bus.delete_group(shared, "matching")


async def test_on_redis_a_queue_that_refuses_fails_that_message_only(valkey_url: str, group: str) -> None:
    channel, other, inbox = unique("refused"), unique("fine"), Inbox()
    queue = group_queue_name(group, channel)
    with redis.Redis.from_url(valkey_url) as client:
        client.set(queue, "no list")
        client.hset(GROUP_REGISTRY, queue, channel)
        try:
            async with KombuMessageBus(valkey_url) as bus:
                await bus.subscribe(other, inbox)
                outcomes = await asyncio.gather(
                    bus.publish(other, a_message(1)),
                    bus.publish(channel, a_message(2)),
                    bus.publish(other, a_message(3)),
                    return_exceptions=True,
                )
                await inbox.has(1, 3)
        finally:
            client.hdel(GROUP_REGISTRY, queue)
            client.delete(queue)
    assert outcomes[0] is outcomes[2] is None
    assert isinstance(outcomes[1], MessageBusError)
    assert outcomes[1].error_code == "BROKER_REFUSED"
    assert "WRONGTYPE" in outcomes[1].message


async def test_publishing_goes_on_when_redis_forgot_its_scripts(valkey_url: str) -> None:
    channel, inbox = unique("flushed"), Inbox()
    async with KombuMessageBus(valkey_url) as bus:
        await bus.subscribe(channel, inbox)
        await bus.publish(channel, a_message(1))
        with redis.Redis.from_url(valkey_url) as client:
            client.script_flush()
        await bus.publish(channel, a_message(2))
        await inbox.has(1, 2)


# Settings.


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_losses", 0), ("visibility_timeout", 0), ("touch_interval", 10.0), ("dedup_url", "amqp://host")],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KombuMessageBus("redis://localhost", **{name: value})
    assert name in caught.value.message


def test_a_configured_bus_takes_what_the_configuration_says() -> None:
    config = ConductorConfig.model_validate(
        {
            "work": {"visibility_timeout": 40, "touch_interval": 5, "restore_interval": 6},
            "errors": {"retry": {"max_retries": 7}, "max_worker_losses": 9},
        }
    )
    settings = configured_bus(config, Addresses("amqp://broker", "redis://state"))._settings
    assert (settings.visibility_timeout, settings.touch_interval, settings.restore_interval) == (40, 5, 6)
    assert (settings.retry_policy.max_retries, settings.max_losses) == (7, 9)
    assert (settings.url, settings.dedup_url) == ("amqp://broker", "redis://state")


def test_queues_of_groups_have_names_that_fit_and_differ() -> None:
    names = {
        group_queue_name(group, pattern)
        for group in ("a", "b", "x" * 128)
        for pattern in ("p", "q", "y" * 200)
    }
    assert len(names) == 9
    assert all(len(f"{name}.retry.60000") < 256 for name in names)
    assert dead_letter_queue().name not in names
