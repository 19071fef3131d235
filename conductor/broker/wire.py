"""What the bus's threads ask of a broker, whichever it is."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import amqp.exceptions
import redis.exceptions

from conductor.broker.amqp_transport import UNREADABLE
from conductor.broker.signing import Signed, place_of
from conductor.broker.topology import DEADLINE_HEADER, EVENTS
from conductor.broker.transport import is_rabbitmq
from conductor.core.config import mask_url
from conductor.core.exceptions import MessageBusError, causes_of
from conductor.core.rights import missing_in_rabbitmq, missing_in_redis
from conductor.core.tls import explain_tls

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from kombu import Connection

    from conductor.broker.signing import Seals


#: Seconds since the epoch.
_END_OF_TIME = 1e12

#: In place of the future of a message for which nobody waits on an event loop.
NOBODY: Any = None


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message on its way to the broker; `future` belongs to the event loop, the rest to the publisher."""

    exchange: str
    routing_key: str
    body: bytes
    future: asyncio.Future[None] = NOBODY
    deadline: float = 0.0
    """When the publish is given up, in the loop's time."""
    reply_to: str | None = None
    correlation_id: str | None = None
    answer_by: float | None = None
    """When the asker stops waiting, in seconds since the epoch."""
    tag: str = ""
    headers: dict[str, str] | None = None
    """Those of the trace it belongs to, and of its signature."""
    confirmed: bool = False
    error: Exception | None = None


class Incoming(NamedTuple):
    """A message as it came, the body not looked at."""

    channel: str
    body: str | bytes
    reply_to: str | None
    correlation_id: str | None
    answer_by: float | None
    headers: Mapping[str, Any]


def incoming_from(
    channel: str, body: object, properties: Mapping[str, Any], headers: Mapping[str, Any]
) -> Incoming:
    """Take a message of which only its form as a message of kombu's was looked at; ValueError."""
    if UNREADABLE in headers:
        raise ValueError(f"the properties of the message cannot be read: {headers[UNREADABLE]}")
    reply_to, correlation_id = properties.get("reply_to"), properties.get("correlation_id")
    answer_by = headers.get(DEADLINE_HEADER)
    if not isinstance(body, str | bytes):
        raise ValueError("the body is no text")
    if not all(isinstance(name, str | None) for name in (reply_to, correlation_id)):
        raise ValueError("where the answer is to go is no text")
    if answer_by is not None and not (isinstance(answer_by, int | float) and abs(answer_by) < _END_OF_TIME):
        raise ValueError("when the answer is to come is no time")
    return Incoming(channel, body, reply_to, correlation_id, answer_by, headers)


def headers_of(out: Outgoing) -> dict[str, Any]:
    """Give the headers of a message."""
    headers: dict[str, Any] = {} if out.answer_by is None else {DEADLINE_HEADER: out.answer_by}
    return headers if out.headers is None else headers | out.headers


def seal(out: Outgoing, seals: Seals | None) -> None:
    """Sign a message, where there are seals."""
    if seals is None:
        return
    signed = Signed(
        place_of(out.exchange, out.routing_key),
        out.body,
        headers_of(out),
        reply_to=out.reply_to or "",
        correlation_id=out.correlation_id or "",
    )
    out.headers = (out.headers or {}) | seals.sign(signed)


def signed_in(address: Address, incoming: Incoming) -> Signed:
    """Give what a message's signature is about."""
    return Signed(
        place_of(address.exchange, incoming.channel if address.exchange == EVENTS else address.key),
        incoming.body,
        incoming.headers,
        reply_to=incoming.reply_to or "",
        correlation_id=incoming.correlation_id or "",
    )


@dataclass(slots=True, eq=False)
class Address:
    """What a subscription listens to: a key, on EVENTS a channel or pattern, of an exchange."""

    exchange: str
    key: str
    queue: str = ""
    """Its queue, where the broker has queues."""
    refusal: Exception | None = None
    """Why the broker refused the subscription, if it did."""
    over_delivers: bool = False
    """Whether more may come by it than its key says."""


#: What a receiver hands over unread; the rest of the tuple is for its `decode`.
Raw = tuple[Any, ...]


class Sender(Protocol):
    """A connection that publishes; used by one thread."""

    batch_size: int

    def send(self, batch: list[Outgoing]) -> None:
        """Return when the broker has all of `batch`; sets `confirmed`, and `error` where it refused one.

        Raises whatever says that the connection is lost; what is not confirmed then may have arrived.
        """

    def close(self) -> None:
        """Close the connection; never raises."""


class Receiver(Protocol):
    """A connection that consumes; used by one thread, except `channel` and `decode`."""

    #: Whether more was there when `receive` returned, which the socket need not show.
    more: bool

    def fileno(self) -> int:
        """The socket to wait for."""

    def add(self, address: Address) -> None:
        """Start to receive what is sent to `address`; `confirmed` is called with it, also if refused."""

    def drop(self, address: Address) -> None:
        """Stop to receive what is sent to `address`."""

    def receive(self) -> list[Raw]:
        """Take what has come, without waiting; each begins with its Address."""

    def check(self) -> None:
        """Called every few seconds: raise when the broker has gone silent."""

    def channel(self, raw: Raw) -> str:
        """The channel on which `raw` came; never raises."""

    def size(self, raw: Raw) -> int:
        """The bytes of `raw` at least; never raises."""

    def decode(self, raw: Raw) -> Incoming:
        """Read what `receive` gave; one of `DAMAGE` if it makes no sense."""

    def close(self) -> None:
        """Close the connection; never raises."""


_REFUSED_LOGIN = (redis.exceptions.AuthenticationError, amqp.exceptions.AccessRefused)
_REFUSED = (amqp.exceptions.NotAllowed, redis.exceptions.ResponseError, ValueError)


def unavailable(error: Exception, url: str) -> MessageBusError:
    """Make the bus's error of one met while connecting.

    Codes: BROKER_AUTH_FAILED (user or password), BROKER_FORBIDDEN (a right is missing), BROKER_REFUSED (no
    such virtual host or database), BROKER_UNAVAILABLE (all else).
    """
    where = mask_url(url)
    details = {"url": where, "reason": str(error)}
    if missing := missing_right(error):
        return MessageBusError(f"The broker at {where} refuses: {missing}", "BROKER_FORBIDDEN", details)
    if isinstance(error, _REFUSED_LOGIN):
        return MessageBusError(
            f"The broker at {where} refuses the user or the password: {error}", "BROKER_AUTH_FAILED", details
        )
    if isinstance(error, _REFUSED) and not isinstance(error, ssl.SSLError | OSError):
        return MessageBusError(f"The broker at {where} refuses: {error}", "BROKER_REFUSED", details)
    if trouble := explain_tls(error, url):
        return MessageBusError(
            f"The broker at {where} cannot be used: {trouble}", "BROKER_UNAVAILABLE", details
        )
    return MessageBusError(
        f"No broker answers at {where}: {error or type(error).__name__}", "BROKER_UNAVAILABLE", details
    )


def open_sender(connection: Connection, url: str) -> Sender:
    """Open the way on which events go to the broker at `url`; blocks, and raises what kombu raises."""
    if is_rabbitmq(url):
        from conductor.broker.wire_amqp import AmqpSender

        return AmqpSender(connection)
    from conductor.broker.wire_redis import RedisSender

    return RedisSender(connection)


def refused(error: Exception, what: str, about: str) -> MessageBusError:
    """Make the error of what the broker does not do for this user; `about` is a channel."""
    missing = missing_right(error, about)
    made = MessageBusError(
        f"{what} is refused: {missing or error or type(error).__name__}",
        "BROKER_FORBIDDEN" if missing else "BROKER_REFUSED",
        {"reason": str(error)},
    )
    made.__cause__ = error
    return made


def missing_right(error: BaseException | None, about: str = "") -> str | None:
    """Say which right an error of a broker misses, or one that it came from, and how to grant it; else None.

    `about`: the channel or key that it is about, for servers that do not name it.
    """
    for each in causes_of(error):
        if isinstance(each, redis.exceptions.ResponseError):
            found = missing_in_redis(str(each), about)
        else:
            found = missing_in_rabbitmq(str(each)) if isinstance(each, amqp.exceptions.AMQPError) else None
        if found:
            return found
    return None
