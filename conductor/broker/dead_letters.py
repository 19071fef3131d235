"""Dead letters on the wire: the original message, with headers that say why it is dead."""

from __future__ import annotations

import base64
import json
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
    "wire_form",
]

#: What the headers that say why a message is dead begin with; its own headers stay beside them.
PREFIX = "conductor_dead_"
BASE64 = "base64"

#: Characters that are kept.
TRACEBACK_LIMIT, MESSAGE_LIMIT = 24_000, 4_000
#: Bytes of all headers as JSON. RabbitMQ's form of them, which has to fit into one frame, 128 KiB, is at most
#: 2.5 times as long.
HEADERS_LIMIT = 50_000
#: Headers that name further queues: RabbitMQ would put a copy of the letter there, perhaps where it is from.
ROUTING_HEADERS = frozenset({"CC", "BCC"})
#: The only header of a letter which is in its body as a whole, because its headers cannot be headers again.
WHOLE = f"{PREFIX}whole"
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
    original = {name: value for name, value in letter.headers.items() if not name.startswith(PREFIX)}
    return {**original, **{f"{PREFIX}{name}": value for name, value in ours.items()}}


def wire_form(letter: DeadLetter) -> tuple[str, dict[str, Any]]:
    """Give the body and the headers of the message that a letter is sent as."""
    headers = to_jsonable_python(headers_of(letter), fallback=repr)
    if len(json.dumps(headers)) <= HEADERS_LIMIT and not ROUTING_HEADERS & headers.keys():
        return letter.body, headers
    return json.dumps([letter.body, headers]), {WHOLE: True}


def letter_of(body: bytes | str, headers: Mapping[str, Any]) -> DeadLetter:
    """Read a letter; ValueError where the headers are not those of one."""
    if WHOLE in headers:
        body, headers = json.loads(body)
    ours = {name.removeprefix(PREFIX): value for name, value in headers.items() if name.startswith(PREFIX)}
    original = {name: value for name, value in headers.items() if not name.startswith(PREFIX)}
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    return DeadLetter.model_validate({**ours, "body": text, "headers": original})


def publish_dead_letter(producer: Producer, letter: DeadLetter) -> None:
    """Put a letter into the durable queue; blocks, and raises what kombu raises."""
    queue = dead_letter_queue()
    properties = letter.properties
    body, headers = wire_form(letter)
    producer.publish(
        body.encode(),
        # On Redis it needs no binding, which somebody may have deleted together with the queue.
        exchange="",
        routing_key=queue.name,
        declare=[queue],
        delivery_mode=PERSISTENT,
        headers=headers,
        content_type=properties.get("content_type") or "application/json",
        content_encoding="utf-8",
        correlation_id=properties.get("correlation_id"),
    )
