"""Somebody who can reach the broker and has no key: hears what is published, and sends what they like."""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from conductor.broker import topology
from conductor.broker.transport import is_rabbitmq, kombu_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Connection


@dataclass(frozen=True)
class Wire:
    """A message as it is under way, and where to."""

    exchange: str
    key: str
    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    def under(self, **headers: Any) -> Wire:
        """The same with other headers."""
        return replace(self, headers=self.headers | headers)

    def send(self, url: str) -> None:
        """Publish it with kombu."""
        with kombu_connection(url) as connection:
            known = {topology.EVENTS: topology.events_exchange, topology.REPLIES: topology.replies_exchange}
            exchange = known[self.exchange](driver_of(url)) if self.exchange else ""
            connection.Producer().publish(
                self.body.decode(),
                exchange=exchange,
                declare=[exchange] if exchange else [],
                routing_key=self.key,
                headers=self.headers,
                content_type="application/json",
                content_encoding="utf-8",
                **self.properties,
            )


class Wiretap:
    """What is heard on a queue of one's own."""

    def __init__(self) -> None:
        self.heard: queue.Queue[Wire] = queue.Queue()

    def next(self, seconds: float = 10) -> Wire:
        """The next message; `queue.Empty` if there is none."""
        return self.heard.get(timeout=seconds)


def driver_of(url: str) -> str:
    """Kombu's word for the kind of broker."""
    return topology.AMQP if is_rabbitmq(url) else topology.REDIS


@contextlib.contextmanager
def wiretap(url: str, channel: str) -> Iterator[Wiretap]:
    """Listen to a channel."""
    tap, stop, listening = Wiretap(), threading.Event(), threading.Event()
    with kombu_connection(url) as connection:
        thread = threading.Thread(
            target=_listen, args=(connection, channel, tap, stop, listening), daemon=True
        )
        thread.start()
        try:
            assert listening.wait(10)
            yield tap
        finally:
            stop.set()
            thread.join(10)


def _listen(
    connection: Connection,
    channel: str,
    tap: Wiretap,
    stop: threading.Event,
    listening: threading.Event,
) -> None:
    driver, name = connection.transport.driver_type, uuid.uuid4().hex
    probe = f"probe:{name}"

    def on_message(message: Any) -> None:
        key = message.delivery_info["routing_key"]
        if topology.channel_of(driver, key) == probe:
            listening.set()
            return
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        properties = {name: message.properties.get(name) for name in ("reply_to", "correlation_id")}
        tap.heard.put(Wire(topology.EVENTS, key, body, dict(message.headers), properties))

    queues = [topology.event_queue(driver, each, f"tap.{each}.{name}") for each in (channel, probe)]
    with connection.Consumer(queues, on_message=on_message, no_ack=True), connection.channel() as own:
        exchange = topology.events_exchange(driver)
        while not stop.is_set():
            if not listening.is_set():
                # On Redis a subscription exists only some time after it was asked for, each after the last.
                connection.Producer(own).publish(
                    "", exchange=exchange, routing_key=topology.event_routing_key(driver, probe)
                )
            with contextlib.suppress(TimeoutError, OperationalError):
                connection.drain_events(timeout=0.1)
