"""Messages as no client writes them, but RabbitMQ passes on."""

from __future__ import annotations

from struct import pack
from typing import Any

import amqp

from conductor.broker.transport import kombu_connection


class _Raw(amqp.Message):  # type: ignore[misc]
    """Its body is given together with the bytes of its properties."""

    def __init__(self, body: bytes, raw: bytes) -> None:
        super().__init__(body)
        self._raw = raw

    def _serialize_properties(self) -> bytes:
        return self._raw


def with_headers(*fields: bytes) -> bytes:
    """Properties that are just these headers, each as it is in a table."""
    table = b"".join(fields)
    return pack(">HI", 0x2000, len(table)) + table


def text(name: str, value: str) -> bytes:
    """A header that is a text."""
    return pack(">B", len(name)) + name.encode() + b"S" + pack(">I", len(value)) + value.encode()


def nested(depth: int) -> bytes:
    """A header of tables in tables."""
    field = b"\x01at\x01"
    for _ in range(depth):
        field = b"\x01aF" + pack(">I", len(field)) + field
    return field


#: What ends in py-amqp while it reads, or in whoever reads what it gives.
PROPERTIES = {
    "headers nested 400 times": with_headers(nested(400)),
    "headers nested 900 times": with_headers(nested(900)),
    "headers nested 1500 times": with_headers(nested(1500)),
    "a time that is none": with_headers(b"\x01aT" + b"\xff" * 8),
    "a name that is no text": with_headers(b"\x01\xfft\x01", b"\x01at\x01"),
    "a content type that is no text": pack(">H", 0x8000) + b"\x01\xff",
    "an id that is no text": pack(">H", 0x0400) + b"\x01\xff",
}
#: Routing keys that are no text, with which a message comes to a queue that it names beside.
KEYS = {"a key that is no text": b"\xff", "a key with half a character": b"\xed\xa0\x80"}


def publish_raw(url: str, exchange: str, key: str, body: bytes, properties: bytes) -> None:
    """Publish, and return when RabbitMQ has it."""
    _publish(url, _Raw(body, properties), exchange, key)


def publish_under(url: str, key: bytes, queue: str, body: bytes) -> None:
    """Publish with a routing key into a queue of another name."""
    _publish(url, amqp.Message(body, application_headers={"CC": [queue]}), "", key)


def _publish(url: str, message: Any, exchange: str, key: str | bytes) -> None:
    with kombu_connection(url) as connection:
        channel = connection.default_channel
        channel.confirm_select()
        # Not our channel's own, which looks at the key.
        amqp.Channel.basic_publish_confirm(channel, message, exchange=exchange, routing_key=key)
