"""Celery's remote control, signed where there are keys: whoever reaches the broker could stop nodes."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from celery.app.control import Control
from kombu.pidbox import Mailbox, Node
from kombu.serialization import dumps

from conductor.broker.plain_message import DAMAGE
from conductor.broker.signing import SignatureError, Signed, place_of
from conductor.broker.wire import Address, Incoming
from conductor.core.log_ids import bound_ids
from conductor.core.metrics import refused_as

if TYPE_CHECKING:
    from kombu import Message, Producer

    from conductor.broker.signing import Signer


logger = logging.getLogger(__name__)

_CLOCK_LIMIT = 2**62


class GuardedNode(Node):  # type: ignore[misc]
    """Obeys what somebody with a key sent, once; in the parent process of a node."""

    def handle_message(self, body: Any, message: Message | None = None) -> Any:
        """Carry out a command, unless it is refused or makes no sense."""
        try:
            return self._handle(body, message)
        except DAMAGE as error:
            # Not raised: Celery would make its connection anew.
            logger.warning("What came to remote control is no command and is dropped: %s", error)
            return None

    def _handle(self, body: Any, message: Message | None) -> Any:
        if message is not None and not _is_clock((message.headers or {}).get("clock")):
            raise ValueError("its clock is none")
        node = self.mailbox.app.node
        if message is not None and node is not None and node.desk.guard is not None:
            address = Address(self.mailbox.exchange.name, "")
            incoming = Incoming(address.exchange, message.body, None, None, None, message.headers or {})
            try:
                node.desk.guard.check(address, incoming)
            except SignatureError as error:
                node.metrics.metrics.message_refused(refused_as(error.error_code))
                with bound_ids({"task_id": _task_in(body)}):
                    logger.warning("A command is refused: %s", error)
                return None
        return super().handle_message(body, message)


def _is_clock(value: object) -> bool:
    """Whether a node may take it over: it sends it with its answers, and RabbitMQ takes 64 bits."""
    return value is None or (isinstance(value, int) and 0 <= value < _CLOCK_LIMIT)


def _task_in(command: Any) -> str | None:
    """Give the task that a command is about, which may be anything."""
    given = command.get("arguments") if isinstance(command, dict) else None
    task_id = given.get("task_id") if isinstance(given, dict) else None
    return task_id if isinstance(task_id, str) else None


class SignedMailbox(Mailbox):  # type: ignore[misc]
    """Signs the commands; answers are not signed."""

    node_cls = GuardedNode
    app: Any = None

    def _publish(self, *arguments: Any, channel: Any = None, producer: Any = None, **options: Any) -> None:
        signer = self.app.amqp.signer
        if signer is None:
            super()._publish(*arguments, channel=channel, producer=producer, **options)
            return
        channel = channel or self.connection.default_channel
        with self.producer_or_acquire(producer, channel) as found:
            signing = _SigningProducer(found, signer)
            super()._publish(*arguments, channel=channel, producer=signing, **options)


class RemoteControl(Control):  # type: ignore[misc]
    """See `celery.app.control.Control`."""

    Mailbox = SignedMailbox

    def __init__(self, app: Any = None) -> None:
        super().__init__(app)
        self.mailbox.app = app


class _SigningProducer:
    """Stands in for a producer of kombu's when a command is published."""

    def __init__(self, producer: Producer, signer: Signer) -> None:
        self._producer = producer
        self._signer = signer

    def publish(
        self, command: Any, *, exchange: str, headers: dict[str, Any], serializer: str | None, **options: Any
    ) -> Any:
        """Send what is signed, byte for byte."""
        content_type, content_encoding, body = dumps(command, serializer=serializer)
        stamp = self._signer.sign(Signed(place_of(exchange, ""), body, headers), f"{uuid.uuid4().hex}.1")
        return self._producer.publish(
            body,
            exchange=exchange,
            headers=headers | stamp,
            content_type=content_type,
            content_encoding=content_encoding,
            **options,
        )
