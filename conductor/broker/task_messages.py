"""How Celery sends the messages of tasks."""

from __future__ import annotations

import time
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP

if TYPE_CHECKING:
    from collections.abc import Callable


#: Header of a task: seconds since the epoch at which it was sent.
SENT_HEADER = "conductor_sent"


class TaskMessages(AMQP):  # type: ignore[misc]
    """Says when a task was sent, and when it expires in its headers only.

    Celery 5.7 also has RabbitMQ drop the message at that time, and nobody would hear of its end.
    """

    def as_task_v2(self, *arguments: Any, **options: Any) -> Any:
        """Make the message of a task."""
        message = super().as_task_v2(*arguments, **options)
        message.headers[SENT_HEADER] = time.time()
        return message

    def _create_task_sender(self) -> Callable[..., Any]:
        send: Callable[..., Any] = super()._create_task_sender()

        @wraps(send)
        def send_task_message(*arguments: Any, expiration: float | None = None, **options: Any) -> Any:
            return send(*arguments, **options)

        return send_task_message
