"""Our variant of kombu's RabbitMQ transport."""

import contextlib
import uuid

import pytest
from amqp.exceptions import ChannelError
from kombu import Message, Queue

from conductor.broker.topology import agent_queue, dead_letter_queue, work_exchange
from conductor.broker.transport import kombu_connection
from tests.support.letters import take_all
from tests.support.waiting import wait_until_sync


@pytest.mark.parametrize("queue", [agent_queue("gone"), dead_letter_queue()], ids=lambda queue: queue.name)
def test_what_is_published_to_a_queue_is_in_it_after_somebody_deleted_it(
    rabbitmq_url: str, queue: Queue
) -> None:
    with kombu_connection(rabbitmq_url, confirm_publish=True) as connection:
        producer = connection.Producer()
        for body in ("first", "second", "third"):
            producer.publish(
                body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], delivery_mode=2
            )
            if body == "first":
                with kombu_connection(rabbitmq_url) as elsewhere:
                    queue(elsewhere.default_channel).delete()
    found = take_all(rabbitmq_url, queue.name)
    assert [message.payload for message in found] == ["second", "third"]
    assert [message.properties["delivery_mode"] for message in found] == [2, 2]


def test_what_no_queue_takes_is_an_error_where_it_is_work(rabbitmq_url: str) -> None:
    with kombu_connection(rabbitmq_url, confirm_publish=True) as connection:
        work = connection.Producer(exchange=work_exchange())
        for _ in range(2):
            with pytest.raises(ChannelError, match="NO_ROUTE"):
                work.publish("lost", routing_key="nobody's")
        connection.Producer().publish("an event", routing_key="nobody's")


def test_what_is_kept_is_held_and_settled_one_by_one_and_comes_back_with_the_connection(
    rabbitmq_url: str,
) -> None:
    queue, got = Queue(f"kept-{uuid.uuid4().hex}", durable=True), list[Message]()
    names = ["acknowledged", "rejected", "lost", "later", "last"]
    with kombu_connection(rabbitmq_url) as connection, kombu_connection(rabbitmq_url) as elsewhere:
        for name in names:
            elsewhere.Producer().publish(name, routing_key=queue.name, declare=[queue])
        consumer = connection.Consumer([queue], on_message=got.append)
        consumer.qos(prefetch_count=3, apply_global=True)
        consumer.consume()

        def has(*expected: str) -> None:
            while len(got) < len(expected):
                connection.drain_events(timeout=10)
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            assert sorted(message.payload for message in got) == sorted(expected)

        has(*names[:3])
        consumer.channel.keep(60)
        assert not consumer.channel._transacts
        consumer.channel.keep(0)
        has(*names[:3])
        got[0].ack()
        has(*names[:4])
        got[1].reject(requeue=True)
        got[3].ack()
        has(*names, "rejected")
        connection.release()
        back = list[Message]()
        wait_until_sync(lambda: back.extend(take_all(rabbitmq_url, queue.name)) or len(back) >= 3)
        assert {message.payload for message in back} == {"rejected", "lost", "last"}
        queue(elsewhere.default_channel).delete()


def test_a_connection_shows_its_scheme_and_no_password() -> None:
    assert kombu_connection("amqp://me:secret@host:1/vhost").as_uri() == "amqp://me:**@host:1/vhost"
    assert kombu_connection("amqps://me:secret@host:1/vhost").as_uri() == "amqps://me:**@host:1/vhost"
    assert kombu_connection("amqps://host").transport.client.ssl
