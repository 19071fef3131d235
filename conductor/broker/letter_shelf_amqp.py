"""Dead letters on RabbitMQ: read without acknowledging, so that they return to their places."""

from __future__ import annotations

import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from amqp.exceptions import FrameSyntaxError, MessageNacked, NotFound, PreconditionFailed, ResourceLocked

from conductor.broker.letter_shelf import Found, UndeliverableError, read
from conductor.broker.topology import DEAD_LETTERS, DEAD_LETTERS_LOCK, WORK, dead_letter_queue, work_queue
from conductor.core.exceptions import MessageBusError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from kombu import Connection

    from conductor.broker.replay import Replay

#: Seconds between two attempts to be the only one.
PAUSE = 0.05


class AmqpShelf:
    """See `Shelf`. One reader at a time over all processes: others do not see the messages that it holds."""

    def __init__(self, connection: Connection, busy_timeout: float) -> None:
        """`connection` confirms what is published; after `busy_timeout` seconds there is a DLQ_BUSY error."""
        self._connection = connection
        self._busy_timeout = busy_timeout
        self._reading: Any = None
        self._sending: Any = None
        self._declared: set[str] = set()

    def count(self) -> int:
        """See `Shelf.count`."""
        with self._alone() as channel:
            return _length(channel)

    def walk(self) -> Generator[Found, None, None]:
        """See `Shelf.walk`."""
        with self._alone() as locked:
            left = _length(locked)
            # Its end gives everything back that was not acknowledged.
            with self._connection.channel() as self._reading:
                while left and (message := self._reading.basic_get(DEAD_LETTERS)) is not None:
                    left -= 1
                    headers = message.properties.get("application_headers") or {}
                    yield read(message.delivery_tag, message.body, headers)

    def holds(self, found: Found) -> bool:
        """See `Shelf.holds`."""
        return True

    def remove(self, found: Found) -> bool:
        """See `Shelf.remove`."""
        self._reading.basic_ack(found.token)
        return True

    def move(self, found: Found, replay: Replay) -> bool:
        """See `Shelf.move`."""
        try:
            self._send(replay)
        except (MessageNacked, *self._connection.channel_errors) as error:
            self._sending = None
            self._declared.discard(replay.queue)
            raise UndeliverableError(_reason(replay, error)) from error
        except (ValueError, TypeError, FrameSyntaxError, struct.error) as error:
            # Raised before anything is written.
            raise UndeliverableError(f"its properties are none that RabbitMQ takes: {error}") from error
        return self.remove(found)

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """Give a channel with which the queue of dead letters is declared, and keep others out meanwhile."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            channel = self._connection.channel()
            try:
                channel.queue_declare(DEAD_LETTERS_LOCK, exclusive=True, auto_delete=True)
                break
            except ResourceLocked as error:
                if time.monotonic() > deadline:
                    raise _busy(self._busy_timeout) from error
                time.sleep(PAUSE)
        try:
            dead_letter_queue()(channel).declare()
            yield channel
        finally:
            if channel.is_open:
                channel.queue_delete(DEAD_LETTERS_LOCK)
                channel.close()

    def _send(self, replay: Replay) -> None:
        if self._sending is None or not self._sending.is_open:
            self._sending = self._connection.channel()
        queue = work_queue(replay.queue)
        if replay.queue not in self._declared:
            if queue is None:
                self._sending.queue_declare(replay.queue, passive=True)
            else:
                queue(self._sending).declare()
            self._declared.add(replay.queue)
        message = self._sending.prepare_message(
            replay.body,
            priority=replay.priority,
            content_type=replay.content_type,
            content_encoding=replay.content_encoding,
            headers=replay.headers,
            properties=replay.properties,
        )
        exchange = WORK if queue else ""
        # Waits until the broker has it; what it cannot put anywhere comes back as an error.
        self._sending.basic_publish(message, exchange=exchange, routing_key=replay.queue, mandatory=True)


def _length(channel: Any) -> int:
    return int(channel.queue_declare(DEAD_LETTERS, passive=True).message_count)


def _reason(replay: Replay, error: Exception) -> str:
    if isinstance(error, NotFound):
        return f"the queue {replay.queue} it came from is not there any more"
    if isinstance(error, PreconditionFailed):
        return f"the queue {replay.queue} is there with other settings than ours: {error}"
    return f"the broker does not take it for queue {replay.queue}: {error}"


def _busy(seconds: float) -> MessageBusError:
    return MessageBusError(
        f"Somebody else has been reading or changing the dead letters for {seconds:g} s: try again later.",
        "DLQ_BUSY",
        {"waited_seconds": seconds},
    )
