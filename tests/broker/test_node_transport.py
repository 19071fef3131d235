"""How nodes take tasks from Redis and Valkey."""

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from conductor.broker import node_transport, topology
from conductor.broker.transport import kombu_connection
from tests.support.consuming import RAW, consuming, put
from tests.support.proxy import Proxy


@pytest.fixture
def server(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def queue(valkey_url: str) -> Iterator[kombu.Queue]:
    queue = topology.agent_queue(uuid.uuid4().hex)
    yield queue
    with kombu_connection(valkey_url) as connection:
        queue(connection.channel()).delete()


def held(server: redis.Redis) -> list[Any]:
    return [json.loads(value) for value in server.hvals("conductor.unacked")]


def tags(server: redis.Redis, queue: kombu.Queue) -> list[bytes]:
    """What the messages of a queue that are held are noted under."""
    noted = server.hgetall("conductor.unacked")
    return [tag for tag, entry in noted.items() if queue.name.encode() in entry]


@pytest.mark.parametrize("waits_already", [True, False])
async def test_a_message_is_not_lost_when_its_taker_dies_before_it_knows_it(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis, waits_already: bool
) -> None:
    mark = f"mark {uuid.uuid4().hex}"
    ended = threading.Event()

    def consume(url: str) -> None:
        with consuming(url) as consumer:
            consumer.consume(queue)
            if waits_already:
                consumer.until(lambda: consumer.turns)
                put(valkey_url, queue, mark)
            with pytest.raises(consumer.connection.connection_errors):
                consumer.until(ended.is_set)
            assert consumer.messages == []

    async with Proxy(valkey_url) as proxy:
        proxy.cut_at(mark.encode())
        if not waits_already:
            await asyncio.to_thread(put, valkey_url, queue, mark)
        await asyncio.to_thread(consume, proxy.url)
    left = [value.decode() for value in server.lrange(queue.name, 0, -1)]
    assert len([1 for text in (*left, *map(json.dumps, held(server))) if mark in text]) == 1


def test_an_idle_consumer_is_told_of_each_message(valkey_url: str, queue: kombu.Queue) -> None:
    with consuming(valkey_url) as consumer:
        consumer.consume(queue)
        for number in range(5):
            # Without being told it would look again in an hour.
            consumer.turn()
            put(valkey_url, queue, str(number))
            message = consumer.until(lambda: consumer.messages and consumer.messages.pop())
            assert message.payload == str(number)
            message.ack()


def test_any_of_its_queues_wakes_a_consumer(valkey_url: str, queue: kombu.Queue) -> None:
    other = topology.agent_queue(uuid.uuid4().hex)
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, other)
        for each in (other, queue, other):
            consumer.turn()
            put(valkey_url, each, each.name)
            message = consumer.until(lambda: consumer.messages and consumer.messages.pop())
            assert message.payload == each.name
            message.ack()


def test_a_consumer_takes_its_queues_in_turn(valkey_url: str, queue: kombu.Queue) -> None:
    other = topology.agent_queue(uuid.uuid4().hex)
    for each in (queue, other):
        put(valkey_url, each, *[each.name] * 3)
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, other)
        order: list[str] = []
        while len(order) < 6:
            message = consumer.until(lambda: consumer.messages and consumer.messages.pop())
            order.append(message.payload)
            message.ack()
    assert order[:2] == order[2:4] == order[4:]
    assert len(set(order[:2])) == 2


def test_a_consumer_that_has_enough_takes_no_more_and_rests(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis
) -> None:
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, prefetch=2)
        consumer.turn()
        put(valkey_url, queue, *"abcd")
        consumer.until(lambda: len(consumer.messages) == 2)
        # What it was told meanwhile must not keep the loop turning.
        consumer.until(lambda: consumer.turns > 2 and not consumer.hub.poller.poll(0))
        assert server.llen(queue.name) == 2
        for message in consumer.messages[:2]:
            message.ack()
        consumer.until(lambda: len(consumer.messages) == 4)
        assert sorted(message.payload for message in consumer.messages) == list("abcd")
        for message in consumer.messages[2:]:
            message.ack()
    assert server.llen(queue.name) == 0


def test_many_messages_that_end_at_once_follow_each_other(valkey_url: str, queue: kombu.Queue) -> None:
    put(valkey_url, queue, *map(str, range(50)))
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, ack=True)
        # Without being told to, the loop would wait a second for each.
        consumer.until(lambda: len(consumer.messages) == 50)
        assert [message.payload for message in consumer.messages] == list(map(str, range(50)))


def test_a_message_that_was_taken_waits_for_nobody_who_had_his_part_of_the_turn(
    valkey_url: str, queue: kombu.Queue
) -> None:
    """Celery's pool gives what was taken to processes in each turn of the loop, perhaps before the taking."""
    put(valkey_url, queue, *map(str, range(50)))
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, prefetch=1)
        done: list[str] = []

        def pool() -> None:
            for message in consumer.messages[len(done) :]:
                done.append(message.payload)
                message.ack()

        consumer.hub.on_tick = [pool, *consumer.hub.on_tick]
        # Without being told to, the loop would wait a second for each.
        consumer.until(lambda: len(done) == 50)


def envelope(**changes: Any) -> bytes:
    """A message of kombu's, except for the changes."""
    properties = {"delivery_tag": "t", "delivery_info": {"exchange": "e", "routing_key": "r"}}
    properties |= changes.pop("properties", {})
    whole = {"body": "b", "content-type": RAW, "content-encoding": "binary", "headers": {}, **changes}
    return json.dumps(whole | {"properties": properties}).encode()


RUBBISH = [
    b"",
    b"no JSON",
    b"\x00\xff\n",
    b"[]",
    b'{"body": "", "properties": {}}',
    b'{"properties": {"delivery_info": {"exchange": "e", "routing_key": "r"}}}',
    # JSON to the one and not to the other: the server's and Python's.
    envelope().replace(b'"b"', b"0x10"),
    envelope().replace(b'"b"', b'"\xff"'),
    envelope().replace(b'"t"', b'"\xff"'),
    envelope().replace(b'"b"', b'"\\ud800"'),
    envelope(body=5),
    envelope(body=[1]),
    envelope(headers=None),
    envelope(headers=[]),
    envelope(headers=[1]),
    envelope(headers={"__type__": "uuid", "__value__": 5}),
    envelope(properties={"delivery_info": {"exchange": [1], "routing_key": "r"}}),
    envelope(properties={"body_encoding": "zip"}),
    envelope(properties={"body_encoding": ["base64"]}),
    envelope(body="abc", properties={"body_encoding": "base64"}),
]


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_what_is_no_message_is_delivered_as_the_bytes_it_is_and_can_be_put_back(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis, rubbish: bytes
) -> None:
    with consuming(valkey_url) as consumer:
        consumer.consume(queue)
        server.lpush(queue.name, rubbish)
        message = consumer.until(lambda: consumer.messages and consumer.messages.pop())
        assert (message.content_type, message.payload) == (RAW, rubbish)
        # As a restart does it, of this consumer or, after its end, of another.
        message.requeue()
        again = consumer.until(lambda: consumer.messages and consumer.messages.pop())
        assert (again.content_type, again.payload) == (RAW, rubbish)
        again.ack()
    assert not tags(server, queue)
    assert server.llen(queue.name) == 0


@pytest.mark.parametrize("priority", [float("inf"), "x", [1]])
@pytest.mark.parametrize("exchange", ["", "nowhere", topology.WORK])
def test_a_message_is_put_back_where_it_was_whatever_it_says(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis, exchange: str, priority: Any
) -> None:
    place = {"exchange": exchange, "routing_key": "nothing"}
    with consuming(valkey_url) as consumer:
        consumer.consume(queue)
        server.lpush(queue.name, envelope(properties={"delivery_info": place, "priority": priority}))
        message = consumer.until(lambda: consumer.messages and consumer.messages.pop())
        message.requeue()
        again = consumer.until(lambda: consumer.messages and consumer.messages.pop())
        assert again.payload == b"b"
        again.ack()


@pytest.mark.parametrize("text", [*RUBBISH[1:], envelope()])
async def test_whatever_its_taker_died_of_is_restored_by_the_next(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis, text: bytes
) -> None:
    """The taker dies before it knows what it took."""

    def consume(url: str) -> None:
        with consuming(url) as consumer:
            consumer.consume(queue)
            consumer.turn()
            server.lpush(queue.name, text)
            with pytest.raises(consumer.connection.connection_errors):
                consumer.until(lambda: consumer.messages)

    async with Proxy(valkey_url) as proxy:
        proxy.cut_at(text)
        await asyncio.to_thread(consume, proxy.url)
    (tag,) = tags(server, queue)
    server.zadd("conductor.unacked_index", {tag: 1})

    def restore() -> None:
        with consuming(valkey_url, restore_interval=0.05) as consumer:
            consumer.consume(queue)
            message = consumer.until(lambda: consumer.messages and consumer.messages.pop())
            assert message.payload in (text, b"b")
            message.ack()

    await asyncio.to_thread(restore)


def test_two_messages_with_the_same_tag_are_two(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis
) -> None:
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, prefetch=2)
        server.lpush(queue.name, envelope(), envelope())
        consumer.until(lambda: len(consumer.messages) == 2)
        assert len(tags(server, queue)) == 2
        for message in consumer.messages:
            message.ack()


def test_who_may_not_be_told_looks_at_intervals(
    valkey_url: str, queue: kombu.Queue, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    server.execute_command("ACL", "SETUSER", "untold", "on", ">pw", "~*", "&*", "+@all", "-client|tracking")
    url = valkey_url.replace("redis://", "redis://untold:pw@")
    with consuming(url, restore_interval=0.05) as consumer:
        consumer.consume(queue)
        consumer.turn()
        put(valkey_url, queue, "found")
        consumer.until(lambda: consumer.messages)
        consumer.messages[0].ack()
    server.execute_command("ACL", "DELUSER", "untold")
    assert "restore_interval" in caplog.text


def test_what_is_fetched_ahead_comes_from_the_agents_in_turn(
    valkey_url: str, queue: kombu.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = topology.agent_queue(uuid.uuid4().hex)
    monkeypatch.setattr(node_transport, "SECONDS_IN_A_ROW", 60.0)
    put(valkey_url, queue, *"mmmm")
    with consuming(valkey_url) as consumer:
        consumer.consume(queue, other)
        consumer.until(lambda: consumer.messages)
        put(valkey_url, other, *"oo")
        order = []
        for _ in range(5):
            consumer.connection.default_channel.take_ahead()
            done = consumer.messages.pop(0)
            order.append(done.payload)
            done.ack()
        assert "".join(order) == "momom"
        consumer.messages.pop().ack()


def test_after_some_time_nothing_is_fetched_ahead_any_more(
    valkey_url: str, queue: kombu.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(valkey_url, queue, *"abc")
    with consuming(valkey_url) as consumer:
        consumer.consume(queue)
        consumer.until(lambda: consumer.messages)
        monkeypatch.setattr(node_transport, "SECONDS_IN_A_ROW", -1.0)
        consumer.connection.default_channel.take_ahead()
        assert len(consumer.messages) == 1
        # When the task has ended, all queues are looked into.
        consumer.messages.pop().ack()
        consumer.until(lambda: consumer.messages)
        consumer.messages.pop().ack()
