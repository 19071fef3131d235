"""Our RabbitMQ transport where the queues of tasks are quorum queues: `?task_queues=quorum` in the URL.

What differs from `amqp_transport`:
- Queues of tasks are declared as quorum queues. Whatever else there is stays classic.
- Quorum queues have no limit for what all consumers of a channel hold together (540, NOT_IMPLEMENTED). Such a
  limit is kept here instead: a channel that holds as much as it may cancels its consumers. With room again it
  first asks its queues one after the other, and consumes once all are empty. So nothing waits in a busy node
  while another is idle. What two queues delivered in the same moment is given back.
- Celery is told that the limit is one for all, and goes on to raise it for tasks that wait for their time.
- The count of deliveries that quorum queues add to a message is none of its headers.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.exceptions import ChannelError, RecoverableConnectionError
from kombu import Connection

from conductor.broker import amqp_transport
from conductor.broker.queue_types import QUORUM
from conductor.broker.topology import work_queue

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULE = "conductor.broker.quorum_transport"
TRANSPORTS = {"amqp": f"{_MODULE}:Transport", "amqps": f"{_MODULE}:TLSTransport"}

Connection.resolve_aliases.update({name: scheme for scheme, name in TRANSPORTS.items()})

#: RabbitMQ 4 drops what was delivered 20 times, unless a queue says otherwise; -1 is for 4 only.
_ARGUMENTS = {"x-queue-type": QUORUM, "x-delivery-limit": 2**31 - 1}
_COUNTS = ("x-delivery-count", "x-acquired-count")
#: Seconds in which Celery's event loop turns once, and so raises the limit where what came has to wait.
_TURN = 0.001
_ASKING = (spec.Basic.Consume, spec.Basic.Get)


@dataclass
class _Source:
    """A queue of tasks that somebody consumes, whether or not there is a consumer right now."""

    queue: str
    callback: Callable[[Any], None]
    options: dict[str, Any]
    tag: str | None = None
    """The tag of the consumer, if there is one."""


class Channel(amqp_transport.Channel):
    """A channel of `Transport`; `basic_qos` with `a_global` is for all of its consumers of tasks together."""

    _numbers = itertools.count(1)
    _looking: bool
    _prefetch: int

    def queue_declare(self, queue: str = "", *arguments: Any, **options: Any) -> Any:
        """Declare a durable queue of tasks as a quorum queue; see `amqp_transport.Channel`."""
        # Celery knows of no type where it was given just a name.
        if options.get("durable") and work_queue(queue) is not None:
            options["arguments"] = {**(options.get("arguments") or {}), **_ARGUMENTS}
        return super().queue_declare(queue, *arguments, **options)

    def message_to_python(self, raw_message: Any) -> Any:
        """Make a message of what came, without what RabbitMQ added on its way."""
        headers = raw_message.properties.get("application_headers") or {}
        for name in _COUNTS:
            headers.pop(name, None)
        return super().message_to_python(raw_message)

    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool) -> Any:
        """Limit what is held; before anything is consumed."""
        if not a_global:
            return super().basic_qos(prefetch_size, prefetch_count, a_global)
        self._limit = prefetch_count
        # Its consumers have another limit each.
        self._rest()
        self._look_soon()
        return None

    def basic_consume(
        self, queue: str = "", *arguments: Any, callback: Any = None, no_ack: bool = False, **options: Any
    ) -> Any:
        """Begin to take from a queue."""
        if no_ack or not self._limit or work_queue(queue) is None:
            return super().basic_consume(queue, *arguments, callback=callback, no_ack=no_ack, **options)
        tag = options.pop("consumer_tag", "") or f"{queue}.{next(self._numbers)}"
        options.pop("nowait", None)
        self._sources[tag] = _Source(queue, callback, options)
        self._turns.append(tag)
        self._look_soon()
        return tag

    def basic_cancel(self, consumer_tag: str, **options: Any) -> Any:
        """Take no more from a queue."""
        source = self._sources.pop(consumer_tag, None)
        if source is None:
            return super().basic_cancel(consumer_tag, **options)
        self._turns.remove(consumer_tag)
        return self._cancel(source)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """See `amqp_transport.Channel`."""
        super().basic_ack(delivery_tag, multiple)
        self._look_soon()

    def basic_reject(self, delivery_tag: int, requeue: bool) -> None:
        """See `amqp_transport.Channel`."""
        super().basic_reject(delivery_tag, requeue)
        self._look_soon()

    @property
    def _room(self) -> int:
        return self._limit - len(self._held)

    @property
    def _rests(self) -> bool:
        """Whether a queue is not consumed that somebody wants to take from."""
        return any(source.tag is None for source in self._sources.values())

    def _receive(self, source: _Source, message: Any) -> None:
        """Pass on what came, if there is room for it; with no room left, see to it that no more comes."""
        if self._room < 0:
            super().basic_reject(message.delivery_tag, requeue=True)
            return
        try:
            source.callback(message)
        finally:
            if self._room <= 0:
                self._rest()

    def _rest(self) -> None:
        for source in list(self._sources.values()):
            self._cancel(source)

    def _cancel(self, source: _Source) -> None:
        # Noted before: what comes until RabbitMQ has done it may have us come here again.
        tag, source.tag = source.tag, None
        if tag is not None:
            super().basic_cancel(tag)

    def _look_soon(self) -> None:
        """Have the queues looked into, if there is room, by the event loop."""
        if self._looking or self._room <= 0 or not self._rests:
            return
        if self.connection.hub is None:
            self._wake()
        else:
            self._look_in(0)

    def _look_in(self, seconds: float) -> None:
        # Not kombu's `call_soon`: what a callback of it or a timer wants soon waits for the next event.
        self._looking = True
        self.connection.hub.call_later(seconds, self._look)

    def _look(self) -> None:
        """Take one message, or consume where there is none."""
        self._looking = False
        if self.connection is None or self._room <= 0 or not self._rests:
            return
        for tag in tuple(self._turns):
            if (source := self._sources.get(tag)) is None:
                continue  # It was cancelled while we waited for the one before.
            self._turns.remove(tag)
            self._turns.append(tag)
            if (message := self.basic_get(source.queue)) is not None:
                self._look_in(_TURN)
                self._held[message.delivery_tag] = time.monotonic()
                self._receive(source, message)
                return
        self._wake()

    def _wake(self) -> None:
        room = self._room
        if room <= 0:
            return
        if room != self._prefetch:
            super().basic_qos(0, room, a_global=False)
            self._prefetch = room
        for source in list(self._sources.values()):
            if source.tag is None:
                # Never one that was used before: what is still held would count against it.
                source.tag = f"{source.queue}.{next(self._numbers)}"
                receive = partial(self._receive, source)
                super().basic_consume(
                    source.queue, consumer_tag=source.tag, callback=receive, nowait=True, **source.options
                )

    def _on_close(self, reply_code: int, reply_text: str, class_id: int, method_id: int) -> None:
        try:
            super()._on_close(reply_code, reply_text, class_id, method_id)
        except ChannelError as error:
            if (class_id, method_id) not in _ASKING:
                raise
            # As when RabbitMQ cancels the consumer of a queue that was deleted; a timer would just log it.
            raise RecoverableConnectionError(reply_text) from error

    def _forget(self) -> None:
        super()._forget()
        self._sources: dict[str, _Source] = {}
        """By the tags that those know who consume."""
        self._turns: list[str] = []
        """Those tags; whose turn it is comes first."""
        self._limit = 0
        self._prefetch = 0
        self._looking = False


class _Connection(amqp_transport.AmqpConnection):
    Channel = Channel
    hub: Any = None


class _TLSConnection(amqp_transport.TLSConnection):
    Channel = Channel
    hub: Any = None


class _TransportMixin:
    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        connection.hub = loop
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Have Celery ask for one limit for all consumers of a channel."""
        return False


class Transport(_TransportMixin, amqp_transport.Transport):
    """amqp://"""

    Connection = _Connection


class TLSTransport(_TransportMixin, amqp_transport.TLSTransport):
    """amqps://"""

    Connection = _TLSConnection
