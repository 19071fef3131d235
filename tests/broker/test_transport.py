"""Our variants of kombu's Redis transports."""

import asyncio
import ssl
import time
import uuid
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis
from kombu.asynchronous import Hub

from conductor.broker import topology
from conductor.broker.transport import kombu_connection, transport_options
from conductor.core.exceptions import ConfigurationError
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until_sync


@pytest.fixture
def connection(valkey_url: str) -> Iterator[kombu.Connection]:
    with kombu_connection(valkey_url) as connection:
        yield connection


@pytest.fixture
def server(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


def test_certificates_are_verified_unless_the_url_says_otherwise() -> None:
    strict, loose = kombu_connection("rediss://host"), kombu_connection("rediss://host?ssl_cert_reqs=none")
    for connection in (strict, loose):
        assert connection.transport  # which looks at the certificates' rules
    assert strict.ssl["ssl_cert_reqs"] is ssl.CERT_REQUIRED
    assert loose.ssl["ssl_cert_reqs"] is ssl.CERT_NONE


def test_a_connection_shows_its_scheme_and_no_password() -> None:
    assert kombu_connection("redis://:secret@host:1/2").as_uri() == "redis://:**@host:1/2"
    assert kombu_connection("rediss://:secret@host:1/2").as_uri() == "rediss://:**@host:1/2"


def test_sentinels_are_asked_for_the_master_of_the_url() -> None:
    url = "sentinel://one:26379;sentinel://two:26379/0?master_name=main"
    assert transport_options(url) == {"master_name": "main"}
    connection = kombu_connection(url)
    assert connection.alt == ["sentinel://one:26379", "sentinel://two:26379/0"]
    assert connection.transport_options["master_name"] == "main"


def test_an_unknown_broker_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="sentinel://"):
        kombu_connection("kafka://host")


def test_a_channel_reuses_its_clients(connection: kombu.Connection) -> None:
    channel = connection.channel()
    assert channel._create_client() is channel._create_client()
    assert channel._create_client() is not channel._create_client(asynchronous=True)


def test_fanout_exchanges_leave_no_bindings(connection: kombu.Connection, server: Any) -> None:
    name = f"fanout.{uuid.uuid4().hex}"
    queue = kombu.Queue(name, kombu.Exchange(name, type="fanout"), routing_key="x")
    queue(connection.channel()).declare()
    assert [key for key in server.scan_iter("*") if name in key] == []


def test_bindings_of_work_queues_are_kept(connection: kombu.Connection, server: Any) -> None:
    queue = topology.agent_queue(uuid.uuid4().hex)
    queue(connection.channel()).declare()
    assert any(queue.name in member for member in server.smembers(f"_kombu.binding.{topology.WORK}"))
    queue(connection.channel()).delete()


def _put(connection: kombu.Connection, queue: kombu.Queue, count: int) -> None:
    producer = connection.Producer()
    for number in range(count):
        producer.publish(
            {"n": number}, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue]
        )


def test_messages_that_are_worked_on_are_touched_and_others_are_not(
    connection: kombu.Connection, server: Any
) -> None:
    queue = topology.agent_queue(uuid.uuid4().hex)
    _put(connection, queue, 2)
    channel = connection.channel()
    held = [queue(channel).get() for _ in range(2)]
    index = channel.unacked_index_key
    for message in held:
        server.zadd(index, {message.delivery_tag: 1.0})
    held[1].ack()
    began = time.time()
    channel.qos.touch()
    assert server.zscore(index, held[0].delivery_tag) >= began - 1
    assert server.zscore(index, held[1].delivery_tag) is None
    held[0].ack()
    channel.qos.touch()
    assert server.zscore(index, held[0].delivery_tag) is None


def test_the_event_loop_touches_at_its_interval(valkey_url: str, server: Any) -> None:
    queue, hub = topology.agent_queue(uuid.uuid4().hex), Hub()
    messages: list[Any] = []
    with kombu_connection(valkey_url) as connection:
        connection.transport_options["touch_interval"] = 0.05
        _put(connection, queue, 1)
        connection.register_with_event_loop(hub)
        consumer = connection.Consumer([queue], on_message=messages.append)
        consumer.consume()
        loop = hub.create_loop()
        wait_until_sync(lambda: next(loop) or messages, interval=0.001)
        tag = messages[0].delivery_tag
        index = connection.default_channel.unacked_index_key
        server.zadd(index, {tag: 1.0})
        wait_until_sync(lambda: next(loop) or server.zscore(index, tag) > 1.0, interval=0.001)
        messages[0].ack()
    hub.close()


def test_the_keys_of_unacknowledged_messages_are_our_own(connection: kombu.Connection) -> None:
    channel = connection.channel()
    keys = (channel.unacked_key, channel.unacked_index_key, channel.unacked_mutex_key)
    assert keys == ("conductor.unacked", "conductor.unacked_index", "conductor.unacked_mutex")


def test_a_message_that_is_got_is_noted_until_it_is_acknowledged(
    connection: kombu.Connection, server: Any
) -> None:
    queue = topology.agent_queue(uuid.uuid4().hex)
    _put(connection, queue, 2)
    bound = queue(connection.channel())
    message = bound.get()
    assert message.payload == {"n": 0}
    assert server.hexists("conductor.unacked", message.delivery_tag)
    message.ack()
    assert not server.hexists("conductor.unacked", message.delivery_tag)
    unnoted = bound.get(no_ack=True)
    assert unnoted.payload == {"n": 1}
    assert not server.hexists("conductor.unacked", unnoted.delivery_tag)
    assert bound.get() is None


async def test_a_message_is_not_lost_when_who_gets_it_dies_before_it_knows_it(
    valkey_url: str, connection: kombu.Connection, server: Any
) -> None:
    queue = topology.agent_queue(uuid.uuid4().hex)
    _put(connection, queue, 1)

    def get(url: str) -> None:
        with kombu_connection(url) as doomed, pytest.raises(doomed.connection_errors):
            queue(doomed.channel()).get()

    async with Proxy(valkey_url) as proxy:
        proxy.cut_at(b'"n\\": 0')
        await asyncio.to_thread(get, proxy.url)
    (tag,) = [tag for tag, text in server.hgetall("conductor.unacked").items() if queue.name in text]
    message = queue(connection.channel()).get()
    assert message is None
    connection.default_channel.qos.restore_by_tag(tag)
    assert queue(connection.channel()).get(no_ack=True).payload == {"n": 0}


def test_what_is_no_message_can_be_got(connection: kombu.Connection, server: Any) -> None:
    queue = topology.agent_queue(uuid.uuid4().hex)
    server.lpush(queue.name, "rubbish")
    message = queue(connection.channel()).get(no_ack=True, accept=["application/octet-stream"])
    assert message.payload == b"rubbish"
