"""The bus's connections to RabbitMQ."""

from __future__ import annotations

import contextlib
import select
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import amqp
import amqp.spec
from amqp.exceptions import AccessRefused, MessageNacked, RecoverableConnectionError

from conductor.broker.topology import (
    AMQP,
    EVENTS,
    channel_of,
    event_queue,
    event_routing_key,
    events_exchange,
    needs_filter,
    replies_exchange,
    reply_queue,
)
from conductor.broker.transport import limit_reading
from conductor.broker.wire import Address, Incoming, Outgoing, Raw, headers_of, incoming_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kombu import Connection

_RECEIVE_LIMIT = 64
_TRANSIENT, _PERSISTENT = 1, 2
#: Bytes to read at once; what is held is copied for every frame.
_READ_AHEAD = 4096


class AmqpLink:
    """One connection with one channel on which the exchanges are declared."""

    def __init__(self, connection: Connection) -> None:
        self._kombu = connection
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            limit_reading(connection)
            self._channel = connection.channel()
            events_exchange(AMQP)(self._channel).declare()
            replies_exchange(AMQP)(self._channel).declare()
        except BaseException:
            self.close()
            raise

    def _readable(self, poll: select.poll) -> bool:
        """Whether something came; `poll` is for the socket."""
        connection = self._kombu.connection
        sock = connection.sock
        held = connection.transport._read_buffer or (hasattr(sock, "pending") and sock.pending())  # noqa: SLF001
        return bool(held or poll.poll(0))

    def close(self) -> None:
        """See `Sender.close`."""
        with contextlib.suppress(Exception):
            self._kombu.release()
        with contextlib.suppress(Exception):
            self._kombu.collect()


class AmqpSender(AmqpLink):
    """Publishes batches and waits for the publisher confirms of each as a whole."""

    batch_size = 64

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._sequence = 0
        self._waiting: dict[int, Outgoing] = {}
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._acknowledged)
        self._channel.events["basic_nack"].add(self._refused)

    def send(self, batch: list[Outgoing]) -> None:
        """See `Sender.send`."""
        self._waiting.clear()
        with self._one_write():
            self._publish(batch)
        while self._waiting:
            self._kombu.drain_events()

    def _publish(self, batch: list[Outgoing]) -> None:
        for out in batch:
            self._sequence += 1
            self._waiting[self._sequence] = out
            key = event_routing_key(AMQP, out.routing_key) if out.exchange == EVENTS else out.routing_key
            # What basic_publish of py-amqp 5.4 does, without its look for events before each message.
            arguments = (0, out.exchange, key, False, False)
            self._channel.send_method(amqp.spec.Basic.Publish, "Bssbb", arguments, _to_amqp(out))

    @contextlib.contextmanager
    def _one_write(self) -> Iterator[None]:
        """Collect what py-amqp 5.4 writes frame by frame: each write lets go of the interpreter lock."""
        transport = self._kombu.connection.transport
        write, frames = transport._write, bytearray()  # noqa: SLF001
        transport._write = frames.extend  # noqa: SLF001
        try:
            yield
        finally:
            transport._write = write  # noqa: SLF001
        transport.write(frames)

    def _acknowledged(self, delivery_tag: int, multiple: bool) -> None:
        for out in self._settled(delivery_tag, multiple):
            out.confirmed = True

    def _refused(self, delivery_tag: int, multiple: bool) -> None:
        for out in self._settled(delivery_tag, multiple):
            out.confirmed, out.error = True, MessageNacked()

    def _settled(self, delivery_tag: int, multiple: bool) -> list[Outgoing]:
        tags = [tag for tag in self._waiting if tag <= delivery_tag] if multiple else [delivery_tag]
        return [self._waiting.pop(tag) for tag in tags if tag in self._waiting]


class AmqpReceiver(AmqpLink):
    """Consumes from one queue per subscription; the queues vanish with the connection."""

    more = False

    def __init__(self, connection: Connection, confirmed: Callable[[Address], None]) -> None:
        super().__init__(connection)
        self._confirmed = confirmed
        self._inbox: list[Raw] = []
        self._cancelled = False
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)
        self._transport = connection.connection.transport
        # py-amqp 5.4 reads exactly what it needs next, nine times a message, but can hold a surplus.
        receive = self._transport._quick_recv  # noqa: SLF001
        self._transport._quick_recv = lambda wanted: receive(max(wanted, _READ_AHEAD))  # noqa: SLF001

    def fileno(self) -> int:
        """See `Receiver.fileno`."""
        number: int = self._kombu.connection.sock.fileno()
        return number

    def add(self, address: Address) -> None:
        """See `Receiver.add`."""
        address.refusal = None
        name = address.queue = f"conductor.bus.{uuid.uuid4().hex}"
        if address.exchange == EVENTS:
            address.over_delivers = needs_filter(AMQP, address.key)
            queue = event_queue(AMQP, address.key, name)
        else:
            queue = reply_queue(AMQP, address.key, name)
        bound = queue(self._channel)
        take = partial(self._take, address)
        try:
            bound.declare()
            bound.consume(consumer_tag=name, callback=take, no_ack=True, on_cancel=self._on_cancel)
        except AccessRefused as error:
            address.refusal = error
            self._confirmed(address)
            raise
        self._confirmed(address)

    def drop(self, address: Address) -> None:
        """See `Receiver.drop`."""
        self._channel.basic_cancel(address.queue)

    def receive(self) -> list[Raw]:
        """See `Receiver.receive`."""
        while len(self._inbox) < _RECEIVE_LIMIT and self._readable(self._poll):
            # Not drain_events: it goes on to wait after a heartbeat.
            self._kombu.connection.blocking_read()
        if self._cancelled:
            raise RecoverableConnectionError("the broker ended a subscription")
        received, self._inbox = self._inbox, []
        self.more = len(received) >= _RECEIVE_LIMIT
        return received

    def check(self) -> None:
        """See `Receiver.check`."""
        self._kombu.heartbeat_check(rate=2)

    def channel(self, raw: Raw) -> str:
        """See `Receiver.channel`."""
        return channel_of(AMQP, raw[1].delivery_info["routing_key"])

    def size(self, raw: Raw) -> int:
        """See `Receiver.size`."""
        return len(raw[1].body)

    def decode(self, raw: Raw) -> Incoming:
        """See `Receiver.decode`."""
        _, message = raw
        properties: dict[str, Any] = message.properties
        headers = properties.get("application_headers", {})
        return incoming_from(self.channel(raw), message.body, properties, headers)

    def _take(self, address: Address, message: amqp.Message) -> None:
        self._inbox.append((address, message))

    def _on_cancel(self, consumer_tag: str) -> None:
        self._cancelled = True


def _to_amqp(out: Outgoing) -> amqp.Message:
    properties: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        # Costs nothing where no group is: a queue that does not outlive RabbitMQ keeps nothing on disk.
        "delivery_mode": _PERSISTENT if out.exchange == EVENTS else _TRANSIENT,
        "message_id": out.tag,
    }
    if out.reply_to is not None:
        properties["reply_to"] = out.reply_to
    if out.correlation_id is not None:
        properties["correlation_id"] = out.correlation_id
    if headers := headers_of(out):
        properties["application_headers"] = headers
    return amqp.Message(out.body, **properties)
