"""How Celery sends the messages of tasks."""

from __future__ import annotations

import time
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP
from kombu.serialization import dumps

from conductor.broker.signing import Signed, configured_signer
from conductor.broker.task_message import SENT_AT

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor.broker.signing import Signer


class TaskMessages(AMQP):  # type: ignore[misc]
    """Signs tasks, and says when one was sent, and when it expires in its headers only.

    Celery 5.7 also has RabbitMQ drop the message at that time, and nobody would hear of its end.
    """

    @cached_property
    def signer(self) -> Signer | None:
        """Signs what is sent and checks what comes; None where no keys are configured."""
        config = self.app.config
        return configured_signer(config)

    def as_task_v2(self, *arguments: Any, **options: Any) -> Any:
        """Make the message of a task."""
        message = super().as_task_v2(*arguments, **options)
        message.headers[SENT_AT] = time.time()
        return message

    def _create_task_sender(self) -> Callable[..., Any]:
        send: Callable[..., Any] = super()._create_task_sender()

        @wraps(send)
        def send_task_message(
            producer: Any, name: str, message: Any, *, expiration: float | None = None, **options: Any
        ) -> Any:
            if self.signer is not None:
                message.headers.update(options.pop("headers", None) or {})
                self._sign(self.signer, message, options)
            return send(producer, name, message, **options)

        return send_task_message

    def _sign(self, signer: Signer, message: Any, options: dict[str, Any]) -> None:
        queue = options.get("queue") or options.get("routing_key") or self.app.conf.task_default_queue
        content_type, content_encoding, body = dumps(message.body, serializer=self.app.conf.task_serializer)
        properties = {**message.properties, **options}
        signed = Signed(
            place=queue if isinstance(queue, str) else queue.name,
            body=body,
            headers=message.headers,
            content_type=content_type,
            content_encoding=content_encoding,
            reply_to=properties.get("reply_to") or "",
            correlation_id=properties.get("correlation_id") or "",
        )
        message.headers.update(signer.sign(signed))
