"""Our RabbitMQ transport where the queues of tasks are quorum queues."""

import uuid
from collections.abc import Iterator

import pytest
from kombu import Queue

from conductor.broker import topology
from conductor.broker.amqp_transport import WrongQueueTypeError
from conductor.broker.transport import broker_url, kombu_connection
from conductor.core.enums import AgentType
from conductor.core.exceptions import ConfigurationError
from tests.support import rabbitmq
from tests.support.consuming import Consuming, consuming, put
from tests.support.letters import take_all
from tests.support.waiting import wait_until_sync


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    rabbitmq.skip_without_ctl()
    with rabbitmq.virtual_host(task_queues="quorum") as url:
        yield url


@pytest.fixture
def queue() -> Queue:
    return topology.agent_queue(f"a-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def other() -> Queue:
    return topology.agent_queue(f"b-{uuid.uuid4().hex[:8]}")


def _bodies(node: Consuming) -> list[str]:
    return [message.payload for message in node.messages]


def _ready(url: str, *queues: Queue) -> int:
    with kombu_connection(url) as connection:
        declare = connection.default_channel.queue_declare
        return sum(declare(queue.name, passive=True).message_count for queue in queues)


def _consumers(url: str, *queues: Queue) -> list[int]:
    with kombu_connection(url) as connection:
        declare = connection.default_channel.queue_declare
        return [declare(queue.name, passive=True).consumer_count for queue in queues]


def test_the_url_says_it_and_nobody_else_is_told() -> None:
    assert (
        broker_url("amqp://me:pw@host/v?task_queues=quorum&heartbeat=5") == "amqp://me:pw@host/v?heartbeat=5"
    )
    connection = kombu_connection("amqps://me:secret@host:1/vhost?task_queues=quorum")
    assert connection.as_uri() == "amqps://me:**@host:1/vhost"
    assert kombu_connection("amqp://host/v?task_queues=classic").transport_cls == (
        kombu_connection("amqp://host/v").transport_cls
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("amqp://host/v?task_queues=mirrored", "task_queues='mirrored' is none of classic, quorum: write"),
        ("amqp://host/v?task_queues=", "task_queues='' is none of"),
        ("redis://host/1?task_queues=quorum", "task_queues is of no use in redis://, .* leave it out"),
        ("sentinel://host/1?task_queues=classic", "task_queues is of no use in sentinel://"),
    ],
)
def test_a_wrong_parameter_is_named_with_the_way_out(wrong: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        kombu_connection(wrong)


def test_only_the_queues_of_tasks_are_quorum_queues(url: str, queue: Queue) -> None:
    with kombu_connection(url) as connection:
        channel = connection.default_channel
        shared, group = topology.type_queue(AgentType.REVIEW), topology.group_queue("g", "conductor:phase:x")
        plain = Queue(f"{queue.name}-plain", queue.exchange, f"{queue.name}-plain")
        for each in (queue, plain, shared, topology.dead_letter_queue(), group):
            each(channel).declare()
    rows = rabbitmq.list_objects("queues", url, "name", "type", "arguments")
    found = {name: (kind, arguments) for name, kind, arguments in rows}
    names = (queue.name, plain.name, shared.name, topology.DEAD_LETTERS, group.name)
    assert [found[name][0] for name in names] == ["quorum", "quorum", "quorum", "classic", "classic"]
    assert "2147483647" in found[queue.name][1]


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
@pytest.mark.parametrize(("there", "wanted"), [("quorum", "classic"), ("classic", "quorum")])
def test_a_queue_of_the_other_type_is_named_with_the_way_out(
    url: str, queue: Queue, there: str, wanted: str, plain: bool
) -> None:
    if plain:
        queue = Queue(queue.name, queue.exchange, queue.routing_key)
    base = broker_url(url)
    with kombu_connection(f"{base}?task_queues={there}") as connection:
        queue(connection.default_channel).declare()
    with (
        kombu_connection(f"{base}?task_queues={wanted}") as connection,
        pytest.raises(WrongQueueTypeError) as caught,
    ):
        queue(connection.default_channel).declare()
    told, _, advised = str(caught.value).rpartition(": rabbitmqctl ")
    assert f"queue {queue.name} is of type {there}, and the broker's URL asks for {wanted}" in told
    rabbitmq.control(*advised.split())
    with kombu_connection(f"{base}?task_queues={wanted}") as connection:
        queue(connection.default_channel).declare()


def test_a_queue_that_was_deleted_is_there_again_as_a_quorum_queue(url: str, queue: Queue) -> None:
    with kombu_connection(url, confirm_publish=True) as connection:
        producer = connection.Producer()
        for body in ("first", "second"):
            producer.publish(body, exchange=queue.exchange, routing_key=queue.name, declare=[queue])
            if body == "first":
                with kombu_connection(url) as elsewhere:
                    queue(elsewhere.default_channel).delete()
    assert [message.payload for message in take_all(url, queue.name)] == ["second"]
    assert dict(rabbitmq.list_objects("queues", url, "name", "type"))[queue.name] == "quorum"


def test_a_node_holds_as_much_as_it_may_over_all_its_queues(url: str, queue: Queue, other: Queue) -> None:
    put(url, queue, "own 1", "own 2")
    put(url, other, "any 1", "any 2")
    with consuming(url) as node:
        node.consume(queue, other)
        node.until(lambda: node.messages)
        assert _ready(url, queue, other) == 3
        for count in (2, 3, 4):
            assert len(node.messages) == count - 1
            node.messages[-1].ack()
            node.until(lambda: len(node.messages) == count)  # noqa: B023
        assert sorted(_bodies(node)) == ["any 1", "any 2", "own 1", "own 2"]
        assert _bodies(node)[0][:3] != _bodies(node)[1][:3], "each queue has its turn"
        assert not any(message.delivery_info["redelivered"] for message in node.messages)
        node.messages[-1].ack()


def test_what_comes_to_a_busy_node_goes_to_one_that_is_idle(url: str, queue: Queue, other: Queue) -> None:
    with consuming(url) as busy, consuming(url) as idle:
        busy.consume(queue, other)
        put(url, queue, "long")
        busy.until(lambda: busy.messages)
        put(url, other, "next")
        idle.consume(other)
        idle.until(lambda: busy.turn() or idle.messages)
        assert _bodies(idle) == ["next"]
        assert len(busy.messages) == 1
        busy.messages[0].ack()
        put(url, other, "third")
        busy.until(lambda: len(busy.messages) == 2)


def test_what_two_queues_deliver_in_the_same_moment_is_given_back(
    url: str, queue: Queue, other: Queue
) -> None:
    with consuming(url) as node:
        node.consume(queue, other)
        node.until(lambda: _consumers(url, queue, other) == [1, 1])
        put(url, queue, "own")
        put(url, other, "any")
        wait_until_sync(lambda: _ready(url, queue, other) == 0)
        node.until(lambda: node.messages)
        node.until(lambda: _ready(url, queue, other) == 1)
        assert len(node.messages) == 1
        node.messages[0].ack()
        node.until(lambda: len(node.messages) == 2)
        assert sorted(_bodies(node)) == ["any", "own"]
        assert all("x-delivery-count" not in message.headers for message in node.messages)
        node.messages[1].ack()


def test_with_a_higher_limit_the_queue_of_what_is_held_goes_on(url: str, queue: Queue, other: Queue) -> None:
    with consuming(url) as node:
        node.consume(queue, other)
        node.until(lambda: _consumers(url, queue, other) == [1, 1])
        put(url, queue, "waits")
        node.until(lambda: node.messages)
        channel = node.connection.default_channel
        channel.basic_qos(0, 2, a_global=True)
        node.until(lambda: _consumers(url, other) == [1])
        put(url, queue, "second", "third")
        node.until(lambda: len(node.messages) == 2)
        node.messages[1].ack()
        node.until(lambda: len(node.messages) == 3)
        channel.basic_qos(0, 1, a_global=True)
        node.messages[2].ack()
        put(url, other, "any")
        node.turn()
        assert len(node.messages) == 3
        node.messages[0].ack()
        node.until(lambda: len(node.messages) == 4)
        node.messages[3].ack()


def test_a_queue_that_is_not_wanted_any_more_is_left_alone(url: str, queue: Queue, other: Queue) -> None:
    with consuming(url) as node:
        consumer = node.consume(queue, other)
        node.until(lambda: _consumers(url, queue, other) == [1, 1])
        consumer.cancel_by_queue(other.name)
        put(url, other, "any")
        put(url, queue, "own 1", "own 2")
        node.until(lambda: node.messages)
        node.messages[0].ack()
        node.until(lambda: len(node.messages) == 2)
        consumer.cancel()
        node.messages[1].ack()
        wait_until_sync(lambda: node.turn() or _consumers(url, queue, other) == [0, 0])
        assert _bodies(node) == ["own 1", "own 2"]
    assert [message.payload for message in take_all(url, other.name)] == ["any"]


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_queue_that_is_deleted_counts_as_a_lost_connection(
    url: str, queue: Queue, other: Queue, busy: bool
) -> None:
    with consuming(url) as node:
        node.consume(queue, other)
        node.until(lambda: _consumers(url, queue, other) == [1, 1])
        if busy:
            put(url, other, "any")
            node.until(lambda: node.messages)
        with kombu_connection(url) as elsewhere:
            queue(elsewhere.default_channel).delete()
        if busy:
            node.messages[0].ack()
        with pytest.raises(node.connection.connection_errors):
            node.until(lambda: False)


def test_what_is_kept_is_held_and_comes_back_with_the_connection(url: str, queue: Queue) -> None:
    put(url, queue, "acknowledged", "rejected", "lost", "later")
    with consuming(url) as node:
        node.consume(queue, prefetch=3)
        node.until(lambda: len(node.messages) == 3)
        channel = node.connection.default_channel
        channel.keep(0)
        node.messages[0].ack()
        node.until(lambda: len(node.messages) == 4)
        node.messages[1].reject(requeue=True)
        node.until(lambda: len(node.messages) == 5)
        assert sorted(_bodies(node)) == ["acknowledged", "later", "lost", "rejected", "rejected"]
        channel.keep(0)
    back: list[str] = []
    wait_until_sync(lambda: back.extend(m.payload for m in take_all(url, queue.name)) or len(back) >= 3)
    assert sorted(back) == ["later", "lost", "rejected"]


def test_what_was_delivered_often_is_not_dropped(url: str, queue: Queue) -> None:
    put(url, queue, "again and again")
    with kombu_connection(url) as connection:
        bound = queue(connection.default_channel)
        for _ in range(25):
            message = wait_until_sync(bound.get)
            message.reject(requeue=True)
        message = wait_until_sync(bound.get)
        assert message.payload == "again and again"
        message.ack()
