"""Our variant of kombu's RabbitMQ transport: nothing is lost when it is sent, or while it is worked on.

- Work that was published is in its queue, or that is an error. kombu remembers for each connection what it
  declared, and RabbitMQ confirms also what it can put nowhere: a message for a queue that somebody deleted
  meanwhile would vanish without a word.
- A message may be worked on for longer than RabbitMQ's `consumer_timeout`, 30 minutes by default, after which
  RabbitMQ closes the channel and delivers it again. Only 3.12 and later allow a limit for each queue.
- Where that timeout strikes nevertheless, the connection counts as lost: celery 5.7 would end its worker.
- A queue that exists as another type is an error that says what to do.
- A message whose properties py-amqp 5.4 cannot read comes with a header that says so, and is one that cannot
  be decoded. py-amqp raises something for whoever reads from the connection, as often as it is delivered.
- amqps:// checks the certificate and the host name as `core.tls` reads it from the URL. py-amqp 5.4 checks no
  host name by default, and kombu 5.7 makes 127.0.0.1 of localhost before it could be checked.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import amqp
import amqp.spec
from amqp.exceptions import PreconditionFailed, RecoverableConnectionError
from amqp.method_framing import frame_handler
from amqp.transport import SSLTransport
from kombu import Connection
from kombu.exceptions import DecodeError
from kombu.transport import pyamqp

from conductor.broker.plain_message import PlainMessage
from conductor.broker.queue_types import CLASSIC, TASK_QUEUES
from conductor.broker.topology import WORK, durable_queue
from conductor.core.tls import make_context, read_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_MODULE = "conductor.broker.amqp_transport"
TRANSPORTS = {"amqp": f"{_MODULE}:Transport", "amqps": f"{_MODULE}:TLSTransport"}

#: The header of a message whose properties cannot be read, instead of all of them: the error's name.
UNREADABLE = "conductor_unreadable"
_HEADER_FRAME = 2
#: Bytes before the properties of a message.
_SIZE_OF_START = 12
#: Bytes of a delivery tag and the mark of what is delivered again.
_SIZE_OF_TAG = 9
_DELIVERIES = (amqp.spec.Basic.Deliver, amqp.spec.Basic.GetOk)

Connection.resolve_aliases.update({name: scheme for scheme, name in TRANSPORTS.items()})


#: What RabbitMQ says of a queue that exists as another type.
_OTHER_TYPE = re.compile(
    r"inequivalent arg 'x-queue-type' for queue '(.+)' in vhost '(.+)': "
    r"received (?:none|.*?'(\w+)'.*?) but current is (?:none|.*?'(\w+)')",
    re.DOTALL,
)


class WrongQueueTypeError(PreconditionFailed):  # type: ignore[misc]
    """A queue is there, as another type than the broker's URL asks for."""


class Message(pyamqp.Message, PlainMessage):  # type: ignore[misc]
    """A message of `Channel`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if UNREADABLE in self.headers:
            error = DecodeError(f"its properties cannot be read: {self.headers[UNREADABLE]}")
            self.errors.append((DecodeError, error, None))


class Channel(pyamqp.Channel):  # type: ignore[misc]
    """A channel of `Transport`. One that consumes must publish nothing once `keep` was called."""

    Message = Message
    _transacts: bool

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._forget()
        super().__init__(*arguments, **options)

    def basic_publish_confirm(
        self, msg: Any, exchange: str = "", routing_key: str = "", mandatory: bool = False, **options: Any
    ) -> None:
        """Return when the broker has it; work that no queue takes is a ChannelError."""
        if exchange != WORK and (exchange or durable_queue(routing_key) is None):
            super().basic_publish_confirm(msg, exchange, routing_key, mandatory, **options)
            return
        returned = self._publish_work(msg, exchange, routing_key, options)
        if returned is not None and (queue := durable_queue(routing_key)) is not None:
            queue(self).declare()
            returned = self._publish_work(msg, exchange, routing_key, options)
        if returned is not None:
            raise returned

    def _publish_work(
        self, msg: Any, exchange: str, routing_key: str, options: dict[str, Any]
    ) -> Exception | None:
        """Publish; gives the error with which it came back, which RabbitMQ sends before the confirmation."""
        returned: list[Exception] = []

        def note(error: Exception, *_: Any) -> None:
            returned.append(error)

        self.events["basic_return"].add(note)
        try:
            super().basic_publish_confirm(msg, exchange, routing_key, mandatory=True, **options)
        finally:
            self.events["basic_return"].discard(note)
        return returned[0] if returned else None

    def queue_declare(self, *arguments: Any, **options: Any) -> Any:
        """Declare a queue; WrongQueueTypeError where it is there as another type."""
        try:
            return super().queue_declare(*arguments, **options)
        except PreconditionFailed as error:
            if other := _OTHER_TYPE.search(error.reply_text or ""):
                raise WrongQueueTypeError(_advice(*other.groups(CLASSIC))) from error
            raise

    def basic_consume(
        self, queue: str = "", *arguments: Any, callback: Any = None, no_ack: bool = False, **options: Any
    ) -> Any:
        """Also note what is delivered, and when."""

        def take(message: Any) -> None:
            self._held[message.delivery_tag] = time.monotonic()
            callback(message)

        taking = callback if no_ack or callback is None else take
        return super().basic_consume(queue, *arguments, callback=taking, no_ack=no_ack, **options)

    def keep(self, age: float) -> None:
        """Have RabbitMQ wait without limit for what is held here since `age` seconds or more.

        It is acknowledged in a transaction that is not committed: RabbitMQ then does not count the time any
        more, but gives it back like the rest when the connection is lost.
        """
        until = time.monotonic() - age
        due = [tag for tag, since in self._held.items() if since <= until and tag not in self._kept]
        if not due:
            return
        if not self._transacts:
            self.tx_select()
            self._transacts = True
        for tag in due:
            super().basic_ack(tag)
            self._kept.add(tag)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message; of several at once none may be kept."""
        if self._kept == {delivery_tag}:
            # What the transaction holds is just this. Rolled back, it would count as waited for once more.
            self._held.pop(delivery_tag, None)
            self.tx_commit()
            self._kept.clear()
            return
        self._settle(delivery_tag, partial(super().basic_ack, delivery_tag, multiple))

    def basic_reject(self, delivery_tag: int, requeue: bool) -> None:
        """Give a message back, or throw it away."""
        self._settle(delivery_tag, partial(super().basic_reject, delivery_tag, requeue))

    def _settle(self, tag: int, settle: Callable[[], None]) -> None:
        self._held.pop(tag, None)
        if not self._transacts:
            settle()
            return
        if self._kept:
            self.tx_rollback()
        settle()
        self.tx_commit()
        self._kept.discard(tag)
        for other in self._kept:
            super().basic_ack(other)

    def _on_close(self, reply_code: int, reply_text: str, class_id: int, method_id: int) -> None:
        self._forget()
        try:
            super()._on_close(reply_code, reply_text, class_id, method_id)
        except PreconditionFailed as error:
            if "delivery acknowledgement" not in reply_text:
                raise
            # Only the channel is gone. Whoever hears of it may just log it, and then the event loop has to.
            with contextlib.suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)
            raise RecoverableConnectionError(reply_text) from error

    def _forget(self) -> None:
        self._held: dict[int, float] = {}
        """What is delivered and not settled, with the time it came."""
        self._kept: set[int] = set()
        """Those of it that are acknowledged in the transaction."""
        self._transacts = False


def _advice(queue: str, vhost: str, wanted: str, current: str) -> str:
    return (
        f"The queue {queue} is of type {current}, and the broker's URL asks for {wanted} ({TASK_QUEUES}, "
        f"{CLASSIC} where it is not given): let nodes with {TASK_QUEUES}={current} empty it, end them, "
        f"then delete it with: rabbitmqctl delete_queue --vhost {vhost} {queue}"
    )


class _Frames:
    """Takes the frames of a connection, as py-amqp's `frame_handler` does; see the module."""

    def __init__(self, connection: Any, callback: Callable[..., Any]) -> None:
        self._handle = frame_handler(connection, self._pass_on)
        self._callback = callback
        self._passed_on = 0

    def _pass_on(self, channel: int, method: tuple[int, int], arguments: Any, content: Any) -> Any:
        self._passed_on += 1
        if method in _DELIVERIES:
            arguments = _with_texts(method, arguments)
        return self._callback(channel, method, arguments, content)

    def __call__(self, frame: tuple[int, int, Any]) -> Any:
        kind, channel, payload = frame
        before = self._passed_on
        try:
            return self._handle(frame)
        except Exception as error:
            if kind != _HEADER_FRAME or self._passed_on != before:
                raise
            logger.warning("The properties of a message cannot be read: %r", error)
            mark = amqp.Message(application_headers={UNREADABLE: type(error).__name__})
        return self._handle((kind, channel, bytes(payload[:_SIZE_OF_START]) + mark._serialize_properties()))  # noqa: SLF001


def _with_texts(method: tuple[int, int], arguments: Any) -> Any:
    """Give the arguments of a delivery, its exchange and routing key such as py-amqp can read them."""
    start = 4
    if method == amqp.spec.Basic.Deliver:
        start += 1 + arguments[start]
    start += _SIZE_OF_TAG
    middle = start + 1 + arguments[start]
    end = middle + 1 + arguments[middle]
    exchange, key = bytes(arguments[start + 1 : middle]), bytes(arguments[middle + 1 : end])
    try:
        exchange.decode(), key.decode()
    except UnicodeDecodeError:
        texts = [name.decode(errors="replace").replace("\ufffd", "?").encode() for name in (exchange, key)]
        read = b"".join(bytes([len(text)]) + text for text in texts)
        return bytes(arguments[:start]) + read + bytes(arguments[end:])
    return arguments


class AmqpConnection(pyamqp.Connection):  # type: ignore[misc]
    """A connection with such channels."""

    Channel = Channel

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, frame_handler=_Frames, **options)


class _TLSSocket(SSLTransport):  # type: ignore[misc]
    """A socket whose certificate is checked by our context."""

    def _wrap_socket(self, sock: socket.socket, *, server_hostname: str, **settings: Any) -> ssl.SSLSocket:
        context = make_context(settings)
        return context.wrap_socket(sock, server_hostname=server_hostname, do_handshake_on_connect=False)


class TLSConnection(AmqpConnection):
    """Such a connection on such a socket."""

    def Transport(  # noqa: N802 - py-amqp's
        self,
        host: str,
        connect_timeout: float,
        ssl: Any = None,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        **options: Any,
    ) -> _TLSSocket:
        """Give the socket, not connected yet."""
        options |= {"read_timeout": read_timeout, "write_timeout": write_timeout}
        return _TLSSocket(host, connect_timeout, ssl, **options)


class _TransportMixin:
    """Keeps what is held while Celery's event loop runs."""

    Connection = AmqpConnection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]
        options = connection.client.transport_options
        if interval := options.get("keep_interval"):
            loop.call_repeatedly(interval, self._keep, connection, options["keep_after"])

    def _keep(self, connection: Any, age: float) -> None:
        for channel in list((connection.channels or {}).values()):
            try:
                if isinstance(channel, Channel):
                    channel.keep(age)
            except connection.connection_errors:
                # The main loop meets the broken connection as well, and handles it.
                logger.debug("keeping unacknowledged messages failed", exc_info=True)


class Transport(_TransportMixin, pyamqp.Transport):  # type: ignore[misc]
    """amqp://"""


class TLSTransport(_TransportMixin, pyamqp.SSLTransport):  # type: ignore[misc]
    """amqps://"""

    Connection = TLSConnection

    def __init__(self, client: Any, **options: Any) -> None:
        settings = client.ssl if isinstance(client.ssl, dict) else {}
        client.ssl = {
            **(read_tls("amqps://") or {}),
            "server_hostname": client.hostname or "localhost",
            **settings,
        }
        super().__init__(client, **options)
