"""How Celery sends the messages of tasks."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP

if TYPE_CHECKING:
    from collections.abc import Callable


class TaskMessages(AMQP):  # type: ignore[misc]
    """Says when a task expires in its headers only.

    Celery 5.7 also has RabbitMQ drop the message at that time, and nobody would hear of its end.
    """

    def _create_task_sender(self) -> Callable[..., Any]:
        send: Callable[..., Any] = super()._create_task_sender()

        @wraps(send)
        def send_task_message(*arguments: Any, expiration: float | None = None, **options: Any) -> Any:
            return send(*arguments, **options)

        return send_task_message
