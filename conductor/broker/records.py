"""Celery's record of a task in the result backend, as the process that runs the task writes it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.broker.results import TaskFailed, script
from conductor.core.fields import utc_now

if TYPE_CHECKING:
    from celery.app.task import Context

    from conductor.store.link import Link

KEY_PREFIX = "celery-task-meta-"


def record_key(task_id: str) -> str:
    """Name the key, and the PUB/SUB channel, of a task's record."""
    return f"{KEY_PREFIX}{task_id}"


def pending_record(task_id: str, name: str, run: str) -> str:
    """Write the record of a task that waits in a queue."""
    return json.dumps(
        {
            "status": states.PENDING,
            "result": None,
            "traceback": None,
            "children": None,
            "date_done": None,
            "name": name,
            "kwargs": {"run": run},
            "task_id": task_id,
        }
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task, as its Celery request describes it."""

    task_id: str
    run_id: str
    name: str
    node: str
    queue: str
    retries: int
    args: list[Any] = field(repr=False)

    @classmethod
    def of(cls, request: Context, run_id: str) -> Run:
        """Read what Celery gave the task; `run_id` tells apart the runs of one task id."""
        return cls(
            task_id=request.id,
            run_id=run_id,
            name=request.task,
            node=request.hostname,
            queue=request.delivery_info["routing_key"],
            retries=request.retries or 0,
            args=list(request.args or ()),
        )


@dataclass(frozen=True, slots=True)
class Start:
    """What was found when a run was about to start."""

    attempt: int
    """How often this run was started, this time included; more than 1 after a node or its child died."""
    before: str = ""
    """The node that started it before this time, and that was lost with it."""
    end: dict[str, Any] | None = None
    """The record of the end, when the run is over and must not start again."""


class TaskRecords:
    """Files the starts and ends of tasks; lives on one event loop.

    Celery's own writing takes two blocking round trips for each, cannot share them with the saving of the
    agent's state, and would overwrite the end of a task that is delivered once more.
    """

    def __init__(self, link: Link, expires_seconds: int) -> None:
        self._link = link
        self._expires = expires_seconds

    async def start(self, run: Run) -> Start:
        """File the task as STARTED by this process unless the run is over."""
        started = {
            "status": states.STARTED,
            "result": {"pid": os.getpid(), "hostname": run.node},
            "name": run.name,
            "worker": run.node,
            "queue": run.queue,
            "kwargs": {"run": run.run_id},
            "task_id": run.task_id,
        }
        over, found, before = await self._run("start_task", run, json.dumps(started))
        end = json.loads(found) if over else None
        return Start(0 if over else int(found), before=before.decode(), end=end)

    async def succeed(self, run: Run, result: dict[str, Any]) -> None:
        """File the result of a run."""
        await self._end(run, states.SUCCESS, result, None)

    async def fail(self, run: Run, failure: TaskFailed) -> None:
        """File the failure of a run."""
        described = {
            "exc_type": type(failure).__name__,
            "exc_message": list(failure.args),
            "exc_module": type(failure).__module__,
        }
        await self._end(run, states.FAILURE, described, failure.agent_traceback or str(failure))

    async def _end(self, run: Run, status: str, result: dict[str, Any], traceback: str | None) -> None:
        record = {
            "status": status,
            "result": result,
            "traceback": traceback,
            "children": [],
            "date_done": utc_now().isoformat(),
            "name": run.name,
            "args": run.args,
            "kwargs": {"run": run.run_id},
            "worker": run.node,
            "retries": run.retries,
            "queue": run.queue,
            "task_id": run.task_id,
        }
        await self._run("end_task", run, json.dumps(record))

    async def _run(self, name: str, run: Run, record: str) -> Any:
        key = record_key(run.task_id)
        return await self._link.run(["EVAL", script(name), 1, key, run.run_id, record, self._expires], key)
