"""Celery's result backend, with the records that an agent's process files itself left alone."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend

#: Attribute of a Celery request whose end is in the backend already.
FILED = "conductor_filed"


class ResultBackend(RedisBackend):  # type: ignore[misc]
    """Redis; what `TaskRecords` wrote, in one round trip with the agent's state, is not written once more."""

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        """Store a result, unless it is stored."""
        if getattr(request, FILED, False):
            return result
        return super().store_result(task_id, result, state, traceback, request=request, **options)
