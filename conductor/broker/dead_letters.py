"""Dead letters on the wire: the original message, with headers that say why it is dead."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from conductor.broker.topology import dead_letter_queue
from conductor.core.dead_letters import DeadLetter, announcement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kombu import Producer

__all__ = [
    "announcement",
    "decode_body",
    "encode_body",
    "headers_of",
    "letter_of",
    "publish_dead_letter",
]

#: What the headers that say why a message is dead begin with; its own headers stay beside them.
PREFIX = "conductor_dead_"
BASE64 = "base64"

#: Characters that are kept: all headers of a message have to fit into one frame of RabbitMQ's, 128 KiB.
TRACEBACK_LIMIT, MESSAGE_LIMIT = 24_000, 4_000
PERSISTENT = 2

_ORIGINAL = ("body", "headers")


def encode_body(body: bytes | str) -> tuple[str, str | None]:
    """Give a body as text, and the encoding that was needed for it."""
    if isinstance(body, str):
        return body, None
    try:
        return body.decode("utf-8"), None
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), BASE64


def decode_body(letter: DeadLetter) -> bytes:
    """Give the body of the original message."""
    return base64.b64decode(letter.body) if letter.body_encoding == BASE64 else letter.body.encode()


def headers_of(letter: DeadLetter) -> dict[str, Any]:
    """Give the headers of a letter: those of the original, and ours."""
    ours = letter.model_dump(mode="json", exclude=set(_ORIGINAL), exclude_none=True)
    ours["error_message"] = letter.error_message[:MESSAGE_LIMIT]
    if letter.traceback is not None:
        ours["traceback"] = letter.traceback[-TRACEBACK_LIMIT:]
    return {**letter.headers, **{f"{PREFIX}{name}": value for name, value in ours.items()}}


def letter_of(body: bytes | str, headers: Mapping[str, Any]) -> DeadLetter:
    """Read a letter; ValueError where the headers are not those of one."""
    ours = {name.removeprefix(PREFIX): value for name, value in headers.items() if name.startswith(PREFIX)}
    original = {name: value for name, value in headers.items() if not name.startswith(PREFIX)}
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    return DeadLetter.model_validate({**ours, "body": text, "headers": original})


def publish_dead_letter(producer: Producer, letter: DeadLetter) -> None:
    """Put a letter into the durable queue; blocks, and raises what kombu raises."""
    queue = dead_letter_queue()
    properties = letter.properties
    producer.publish(
        letter.body.encode(),
        # On Redis it needs no binding, which somebody may have deleted together with the queue.
        exchange="",
        routing_key=queue.name,
        declare=[queue],
        delivery_mode=PERSISTENT,
        headers=to_jsonable_python(headers_of(letter), fallback=repr),
        content_type=properties.get("content_type") or "application/json",
        content_encoding="utf-8",
        correlation_id=properties.get("correlation_id"),
    )
