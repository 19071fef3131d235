"""A group's queue holds what other programs put there: nothing of it stops a member."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.topology import (
    CHANNEL_HEADER,
    EVENTS,
    TRIAL_HEADER,
    dead_letter_queue,
    group_queue_name,
)
from conductor.broker.transport import kombu_connection
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from tests.support import raw_amqp
from tests.support.buses import Inbox, a_message, unique
from tests.support.group_process import GroupProcess
from tests.support.letters import filed_letters
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

QUICK = RetryPolicy(max_retries=1, initial_delay=0.05, max_delay=0.1)
SOON: dict[str, Any] = {"visibility_timeout": 1.0, "touch_interval": 0.2, "restore_interval": 0.2}


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")  # type: ignore[no-any-return]


@pytest.fixture
async def bus(url: str) -> AsyncIterator[KombuMessageBus]:
    async with KombuMessageBus(url, retry_policy=QUICK, **SOON) as bus:
        yield bus


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


def letters_of(url: str, queue: str) -> list[DeadLetter]:
    return [letter for letter in filed_letters(url) if letter.queue == queue]


def an_envelope(channel: str, **changes: Any) -> dict[str, Any]:
    """What kombu puts into a list for a message that was published, with changes of its properties too."""
    properties = {
        "delivery_tag": uuid.uuid4().hex,
        "delivery_info": {"exchange": EVENTS, "routing_key": channel},
    }
    if isinstance(changes.get("properties"), dict):
        changes["properties"] = properties | changes["properties"]
    return {"body": a_message(1).model_dump_json(), "headers": {}, "properties": properties} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": [1]},
        {"headers": None},
        {"headers": "text"},
        {"properties": None},
        {"properties": {"delivery_info": 5}},
        {"properties": {"delivery_info": {"exchange": EVENTS, "routing_key": 7}}},
        {"properties": {"body_encoding": "base64"}},
        {"properties": {"body_encoding": ["base64"]}},
        {"body": 5},
        {"body": "\ud800"},
    ],
    ids=str,
)
async def test_on_redis_a_damaged_envelope_is_a_dead_letter(
    valkey_url: str, store: redis.Redis, group: str, changes: dict[str, Any]
) -> None:
    channel, inbox = unique("damaged"), Inbox()
    queue = group_queue_name(group, channel)
    raw = json.dumps(an_envelope(channel, **changes))
    async with KombuMessageBus(valkey_url, **SOON) as bus:
        await bus.subscribe(channel, inbox, group=group)
        store.lpush(queue, raw)
        (letter,) = await wait_until(lambda: letters_of(valkey_url, queue))
        await bus.publish(channel, a_message(2))
        await inbox.has(2)
    assert letter.reason == "undecodable"
    assert (letter.body, letter.headers) == (raw, {})
    assert store.hlen(f"{queue}.held") == 0


@pytest.mark.parametrize(
    "raw",
    ["junk", "[1]", "5", "\udcff", "[" * 100_000, '{"body": "{}", "headers": {"a": "\\udcff"}}'],
    ids=lambda raw: raw[:8].encode(errors="replace").decode(),
)
async def test_on_redis_what_is_no_envelope_is_a_dead_letter(
    valkey_url: str, store: redis.Redis, group: str, raw: str
) -> None:
    channel, inbox = unique("nonsense"), Inbox()
    queue = group_queue_name(group, channel)
    async with KombuMessageBus(valkey_url, **SOON) as bus:
        await bus.subscribe(channel, inbox, group=group)
        store.lpush(queue, raw.encode(errors="surrogateescape"))
        (letter,) = await wait_until(lambda: letters_of(valkey_url, queue))
        await bus.publish(channel, a_message(2))
        await inbox.has(2)
    assert letter.reason == "undecodable"


@pytest.mark.parametrize(
    "headers",
    [
        {TRIAL_HEADER: "text"},
        {TRIAL_HEADER: [1]},
        {TRIAL_HEADER: {"failures": "x"}},
        {TRIAL_HEADER: {"failures": 10**18, "losses": 0, "first_failed_at": "", "returned": True}},
        {TRIAL_HEADER: {"failures": 0, "losses": 2.5, "first_failed_at": "", "returned": True}},
        {TRIAL_HEADER: {"failures": -5, "losses": 0, "first_failed_at": "", "returned": True}},
        {TRIAL_HEADER: {"failures": 1, "losses": 0, "first_failed_at": "2020-01-01", "returned": True}},
        {
            TRIAL_HEADER: {
                "failures": 1,
                "losses": 0,
                "first_failed_at": "0001-01-01T00:00:00+14:00",
                "returned": True,
            }
        },
        {CHANNEL_HEADER: 5},
        {CHANNEL_HEADER: {"a": 1}},
    ],
    ids=str,
)
@pytest.mark.parametrize("then", ["return", "raise"])
async def test_a_message_with_headers_that_are_not_ours_is_as_good_as_new(
    url: str, bus: KombuMessageBus, group: str, headers: dict[str, Any], then: str
) -> None:
    channel, inbox = unique("headers"), Inbox()
    queue, sent = group_queue_name(group, channel), a_message(1)

    async def member(message: AgentMessage) -> None:
        await inbox(message)
        if then == "raise" and message.payload["number"] == 1:
            raise RuntimeError("always")

    await bus.subscribe(channel, member, group=group)
    with kombu_connection(url) as connection:
        connection.Producer().publish(
            sent.model_dump_json(),
            exchange="",
            routing_key=queue,
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
        )
    if then == "raise":
        await inbox.has(1, 1)
        (letter,) = await wait_until(lambda: letters_of(url, queue))
        assert (letter.attempts, letter.message_id) == (2, sent.message_id)
    else:
        await inbox.has(1)
    assert inbox.messages[0].metadata == {"attempt": 1, "redelivered": False}
    await bus.publish(channel, a_message(2))
    await wait_until(lambda: inbox.numbers[-1] == 2)


@pytest.mark.parametrize("properties", raw_amqp.PROPERTIES.values(), ids=raw_amqp.PROPERTIES)
async def test_on_rabbitmq_properties_that_nobody_reads_block_no_group(
    rabbitmq_url: str, group: str, properties: bytes
) -> None:
    def put(queue: str) -> None:
        raw_amqp.publish_raw(rabbitmq_url, "", queue, b"nonsense", properties)

    await is_buried_and_blocks_nothing(rabbitmq_url, group, put)


@pytest.mark.parametrize("key", raw_amqp.KEYS.values(), ids=raw_amqp.KEYS)
async def test_on_rabbitmq_a_routing_key_that_is_no_text_blocks_no_group(
    rabbitmq_url: str, group: str, key: bytes
) -> None:
    def put(queue: str) -> None:
        raw_amqp.publish_under(rabbitmq_url, key, queue, b"nonsense")

    await is_buried_and_blocks_nothing(rabbitmq_url, group, put)


async def is_buried_and_blocks_nothing(url: str, group: str, put: Callable[[str], None]) -> None:
    """What is put into the queue of a group becomes one letter, and the group gets what comes after it."""
    channel, inbox = unique("damaged"), Inbox()
    queue = group_queue_name(group, channel)
    async with KombuMessageBus(url) as bus:
        await bus.subscribe(channel, inbox, group=group)
        await asyncio.to_thread(put, queue)
        await wait_until(lambda: letters_of(url, queue))
        await bus.publish(channel, a_message(2))
        await inbox.has(2)
    # One: a letter may have the header of a copy, and must not be copied as well.
    (letter,) = letters_of(url, queue)
    assert (letter.reason, letter.body) == ("undecodable", "nonsense")


async def test_what_a_group_gives_up_has_a_letter_after_the_queue_of_letters_was_deleted(
    url: str, bus: KombuMessageBus, group: str
) -> None:
    channel, sent = unique("letterless"), [a_message(number) for number in range(3)]

    async def refuse(message: AgentMessage) -> None:
        raise ConductorError("wrong", "BAD_INPUT")

    await bus.subscribe(channel, refuse, group=group)
    for number, message in enumerate(sent):
        await bus.publish(channel, message)
        await wait_until(lambda message=message: filed_letters(url, message.message_id))  # type: ignore[misc]
        if number == 0:
            with kombu_connection(url) as connection:
                dead_letter_queue()(connection.default_channel).delete()


async def a_message_that_a_member_died_of(url: str, channel: str, group: str, number: int) -> None:
    victim = await GroupProcess.start(url, **SOON)
    await victim.call("member", channel=channel, group=group, then="hang")
    async with KombuMessageBus(url) as bus:
        await bus.publish(channel, a_message(number))
    await wait_until(lambda: victim.call("records"))
    await victim.kill()


async def test_a_member_whose_claim_ran_out_before_it_began_goes_on_to_the_next(
    valkey_url: str, group: str
) -> None:
    channel, slow, quick = unique("late"), Inbox(), Inbox()
    async with Proxy(valkey_url) as proxy, KombuMessageBus(proxy.url, **SOON) as bus:
        await a_message_that_a_member_died_of(valkey_url, channel, group, 1)
        proxy.hold(b"losses")
        await bus.subscribe(channel, slow, group=group)
        await asyncio.wait_for(proxy.holds.wait(), 10)
        async with KombuMessageBus(valkey_url, **SOON) as other:
            await other.subscribe(channel, quick, group=group)
            await quick.has(1)
        proxy.release()
        await bus.publish(channel, a_message(2))
        await slow.has(2)


async def test_a_connection_that_is_lost_before_a_message_is_begun_costs_nothing(
    url: str, group: str
) -> None:
    channel, inbox = unique("before"), Inbox()
    async with Proxy(url) as proxy, KombuMessageBus(proxy.url, **SOON) as bus:
        await a_message_that_a_member_died_of(url, channel, group, 1)
        proxy.hold(b"losses")
        await bus.subscribe(channel, inbox, group=group)
        await asyncio.wait_for(proxy.holds.wait(), 10)
        await proxy.stop()
        proxy.release()
        await proxy.start()
        await inbox.has(1)
        await bus.publish(channel, a_message(2))
        await inbox.has(1, 2)


async def test_a_message_that_is_lost_on_its_way_to_the_member_comes_again(url: str, group: str) -> None:
    channel, inbox, sent = unique("way"), Inbox(), a_message(1)
    async with Proxy(url) as proxy, KombuMessageBus(proxy.url, **SOON) as bus, KombuMessageBus(url) as other:
        await bus.subscribe(channel, inbox, group=group)
        proxy.cut_at(sent.message_id.encode())
        await other.publish(channel, sent)
        await asyncio.wait_for(proxy.cut.wait(), 10)
        await proxy.start()
        await inbox.has(1)
        await bus.publish(channel, a_message(2))
        await inbox.has(1, 2)


async def test_a_message_is_handled_once_though_the_connection_is_lost_twice(url: str, group: str) -> None:
    channel, begun, may_end, ended = unique("twice"), Inbox(), asyncio.Event(), Inbox()

    async def member(message: AgentMessage) -> None:
        await begun(message)
        if message.payload["number"] == 1:
            await may_end.wait()
        await ended(message)

    async with Proxy(url) as proxy, KombuMessageBus(proxy.url, visibility_timeout=60.0) as bus:
        await bus.subscribe(channel, member, group=group)
        await bus.publish(channel, a_message(1))
        await begun.has(1)
        await proxy.stop()
        proxy.hold(group.encode())  # which is in what the member says to be one again
        await proxy.start()
        await asyncio.wait_for(proxy.holds.wait(), 10)
        await proxy.stop()
        may_end.set()
        await ended.has(1)
        proxy.release()
        await proxy.start()
        await bus.publish(channel, a_message(2))
        await wait_until(lambda: 2 in ended.numbers, timeout=30)
        assert begun.numbers == [1, 2]
