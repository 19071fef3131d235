"""What a node does with messages that are no tasks: nothing is thrown away."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import WorkerShutdown
from celery.worker.consumer import Consumer

from conductor.broker.addresses import EMBEDDED_GONE, uses_embedded
from conductor.broker.amqp_transport import WrongQueueTypeError
from conductor.broker.plain_message import DAMAGE
from conductor.broker.signing import SignatureError, Signed
from conductor.broker.task_message import check_task_size
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.exceptions import ConductorError, MessageBusError
from conductor.core.log_ids import bound_ids
from conductor.core.message_size import TOO_LARGE
from conductor.store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Message

    from conductor.broker.signing import Signer

logger = logging.getLogger(__name__)


class NodeConsumer(Consumer):  # type: ignore[misc]
    """Makes dead letters of what Celery would drop; in the parent process of a node."""

    def start(self) -> None:
        """End the node where its queues are there as another type: it could not consume them."""
        try:
            super().start()
        except WrongQueueTypeError as error:
            logger.critical("%s", error)
            raise WorkerShutdown(1) from error

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Say the way out where the broker was an embedded server that does not come back."""
        super().on_connection_error_after_connected(exc)
        config = self.app.config
        if uses_embedded(config) and EmbeddedServer.running(config.data_dir) is None:
            logger.warning("Perhaps %s", EMBEDDED_GONE)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Put aside what cannot be read."""
        self._put_aside(message, f"The message cannot be decoded: {exc}")

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Put aside what is no task message."""
        self._put_aside(message, "The message is no Celery task.")

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Put aside a task that nodes do not have."""
        self._put_aside(message, f"There is no task {exc}.")

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Put aside a task message that contradicts itself."""
        self._put_aside(message, f"The task message is not valid: {exc}")

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Message], Any]:
        """Give the handler of messages, which a bad one cannot end: Celery 5.7 lets some errors through."""
        limit, signer = self.app.config.bus.max_message_bytes, self.app.amqp.signer
        handle = super().create_task_handler(*arguments, **options)

        def on_message(message: Message) -> Any:
            try:
                check_task_size(message, limit)
                if signer is not None and not self._is_genuine(message, signer):
                    return None
                return handle(message)
            except MessageBusError as error:
                if error.error_code != TOO_LARGE:
                    raise
                self._put_aside(message, str(error), DeadLetterReason.REFUSED, error.error_code)
            except DAMAGE as error:
                with bound_ids(self._ids_of(message)):
                    logger.exception("A message could not be handled")
                self._put_aside(message, f"The message is damaged: {type(error).__name__}: {error}")

        return on_message

    def _is_genuine(self, message: Message, signer: Signer) -> bool:
        """Whether to go on with a message; else it is dealt with, or delivered again."""
        try:
            nonce = signer.verify(Signed.of_task(message))
            if nonce is None:
                message.genuine = True
                return True
            if self.app.node.desk.take_nonce(nonce, signer.nonce_seconds):
                self._settle_when_done(message, nonce, signer)
                message.genuine = True
                return True
            if (message.delivery_info or {}).get("redelivered"):
                # The broker did not hear that it was done: it had not forgotten it, so nothing is lost.
                with bound_ids(self._ids_of(message)):
                    logger.warning("A message that was done came once more and was dropped")
                message.ack_log_error(logger, self.connection_errors)
                return False
            error = SignatureError("The message was sent once more after it was done.", "MESSAGE_REPLAYED")
        except SignatureError as found:
            error = found
        except (ConductorError, TimeoutError):
            with bound_ids(self._ids_of(message)):
                logger.exception("A signed message could not be checked: it is delivered again")
            message.reject_log_error(logger, self.connection_errors, requeue=True)
            return False
        self._put_aside(message, error.message, DeadLetterReason.REFUSED, error.error_code)
        return False

    def _settle_when_done(self, message: Message, nonce: str, signer: Signer) -> None:
        """Have the end of the message noted after the broker was told of it: before, it may come again."""
        acknowledge = message.ack

        def ack(*arguments: Any, **options: Any) -> None:
            acknowledge(*arguments, **options)
            try:
                self.app.node.desk.settle_nonce(nonce, signer.nonce_seconds)
            except (ConductorError, TimeoutError):
                logger.warning("That a signed message is done could not be noted", exc_info=True)

        message.ack = ack

    def _put_aside(
        self,
        message: Message,
        text: str,
        reason: DeadLetterReason = DeadLetterReason.UNDECODABLE,
        code: str = "INVALID_TASK",
    ) -> None:
        if message.acknowledged:
            return
        with bound_ids(self._ids_of(message)):
            self._make_letter(message, text, reason, code)

    def _ids_of(self, message: Message) -> dict[str, str | None]:
        """Give the ids that a message names, which may be anything."""
        task_id = (message.headers or {}).get("id")
        queue = (message.delivery_info or {}).get("routing_key")
        args: Any = ()
        kwargs: Any = {}
        with contextlib.suppress(Exception):  # decoding raises what it likes
            args, kwargs, _ = message.payload
        ids: dict[str, str | None] = self.app.node.logging.ids_of(task_id, args, kwargs, queue)
        return ids

    def _make_letter(self, message: Message, text: str, reason: DeadLetterReason, code: str) -> None:
        logger.error("%s It becomes a dead letter.", text)
        desk = self.app.node.desk
        known = self.app.amqp.signer is None or getattr(message, "genuine", False)
        try:
            # What may be forged must not fail the task that it names.
            (desk.put_aside if known else desk.refuse)(message, text, reason, code)
        except (ConductorError, TimeoutError):
            logger.exception("A bad message could not be put aside: it is delivered again")
            message.reject_log_error(logger, self.connection_errors, requeue=True)
        else:
            message.ack_log_error(logger, self.connection_errors)
