"""A consumer on an event loop, as the parent process of a node is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import kombu
from kombu.asynchronous import Hub

from conductor.broker.node_transport import node_transport_name
from conductor.broker.transport import broker_url, kombu_connection, tls_settings, transport_options
from tests.support.waiting import wait_until_sync

HOUR = 3600
RAW = "application/octet-stream"


@dataclass
class Consuming:
    """A consumer on an event loop like a node's."""

    hub: Hub
    connection: kombu.Connection
    messages: list[kombu.Message] = field(default_factory=list)
    turns: int = 0

    def consume(self, *queues: kombu.Queue, prefetch: int = 1, ack: bool = False) -> kombu.Consumer:
        """Begin to consume; with `ack` each message is acknowledged as it comes."""

        def on_message(message: kombu.Message) -> None:
            self.messages.append(message)
            if ack:
                message.ack()

        self.connection.register_with_event_loop(self.hub)
        consumer = self.connection.Consumer(list(queues), on_message=on_message, accept=["text/plain", RAW])
        consumer.qos(prefetch_count=prefetch, apply_global=True)
        consumer.consume()
        self.hub.propagate_errors = self.connection.connection_errors
        self._loop = self.hub.create_loop()
        return consumer

    def turn(self) -> None:
        """Let the loop turn once, which takes a second at most."""
        next(self._loop)
        self.turns += 1

    def until(self, condition: Callable[[], Any]) -> Any:
        """Turn until it is true."""
        return wait_until_sync(lambda: condition() or self.turn(), interval=0)


@contextmanager
def consuming(url: str, *, restore_interval: float = HOUR) -> Iterator[Consuming]:
    """Connect a consumer as Celery does it for a node; it is told of new tasks, it does not look for them."""
    hub = Hub()
    options = {"unacked_restore_interval": restore_interval, "visibility_timeout": HOUR}
    options |= transport_options(url)
    transport, ssl = node_transport_name(url), tls_settings(url)
    with kombu.Connection(
        broker_url(url), transport=transport, transport_options=options, ssl=ssl
    ) as connection:
        yield Consuming(hub, connection)
    hub.close()


def put(url: str, queue: kombu.Queue, *bodies: str) -> None:
    with kombu_connection(url, confirm_publish=True) as connection:
        producer = connection.Producer()
        for body in bodies:
            producer.publish(
                body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], retry=False
            )
