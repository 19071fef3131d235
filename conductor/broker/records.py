"""Celery's record of a task in the result backend, as the process that runs the task writes it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.broker.results import script

if TYPE_CHECKING:
    from celery.app.task import Context

KEY_PREFIX = "celery-task-meta-"


def record_key(task_id: str) -> str:
    """Name the key, and the PUB/SUB channel, of a task's record."""
    return f"{KEY_PREFIX}{task_id}"


def pending_record(task_id: str, name: str, run: str) -> str:
    """Write the record of a task that waits in a queue."""
    record = {
        "status": states.PENDING,
        "result": None,
        "traceback": None,
        "children": None,
        "date_done": None,
        "name": name,
        "kwargs": {"run": run},
        "task_id": task_id,
    }
    return json.dumps(record)


@dataclass(frozen=True, slots=True)
class Start:
    """What was found when a run was about to start."""

    attempt: int
    """How often this run was started, this time included; more than 1 after a node or its child died."""
    end: dict[str, Any] | None = None
    """The record of the end, when the run is over and must not start again."""


class TaskRecords:
    """Files tasks as STARTED; blocking, for the main thread of a node's child.

    It replaces Celery's own writing of STARTED, which takes two round trips and would overwrite the end of a
    task that is delivered once more.
    """

    def __init__(self, backend: Any) -> None:
        self._expires = int(backend.expires or 86400)
        self._script = backend.client.register_script(script("start_task"))

    def start(self, request: Context, run: str) -> Start:
        """File the task as STARTED by this process unless `run` is over."""
        started = {
            "status": states.STARTED,
            "result": {"pid": os.getpid(), "hostname": request.hostname},
            "name": request.task,
            "worker": request.hostname,
            "queue": request.delivery_info.get("routing_key"),
            "kwargs": {"run": run},
            "task_id": request.id,
        }
        over, found = self._script(
            keys=[record_key(request.id)], args=[run, json.dumps(started), self._expires]
        )
        if over:
            return Start(0, json.loads(found))
        return Start(int(found))
