"""How large a message may be."""

from __future__ import annotations

from conductor.core.exceptions import MessageBusError
from conductor.core.metrics import NO_METRICS, Metrics, refused_as

#: Bytes of a message as compact JSON in UTF-8; the default of `bus.max_message_bytes`.
DEFAULT_MAX_MESSAGE_BYTES = 1024 * 1024
#: Bytes that a node may add to a message to make a task of it.
WRAPPING = 4096
TOO_LARGE = "MESSAGE_TOO_LARGE"


def check_size(what: str, size: int, limit: int, metrics: Metrics = NO_METRICS) -> None:
    """Raise MessageBusError, code MESSAGE_TOO_LARGE, counted by `metrics`, when `what` has too many bytes."""
    if size > limit:
        metrics.message_refused(refused_as(TOO_LARGE))
        raise too_large(what, size, limit)


def too_large(what: str, size: int, limit: int) -> MessageBusError:
    """Make the error of what has too many bytes."""
    return MessageBusError(
        f"{what} has {size} bytes, more than bus.max_message_bytes ({limit}): keep large data in a file or a "
        "store and send where it is, or raise bus.max_message_bytes everywhere.",
        TOO_LARGE,
        {"size": size, "limit": limit},
    )


def bytes_in(body: str | bytes) -> int:
    """Count the bytes of a body, which may be text."""
    if isinstance(body, bytes) or body.isascii():
        return len(body)
    return len(body.encode("utf-8", "replace"))


def most_on_the_wire(limit: int) -> int:
    """Give the bytes beyond which nothing in a broker can be a message of `limit` bytes, however written.

    JSON in JSON doubles its quotes, ASCII triples other alphabets, and there are headers.
    """
    return 3 * limit + 64 * 1024
