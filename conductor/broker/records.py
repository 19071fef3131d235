"""Celery's record of a task in the result backend, as the processes that run the task write it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.broker.results import LETTER, TaskFailed, script
from conductor.broker.task_letters import Original, as_json
from conductor.broker.task_message import sent_at_in
from conductor.core.fields import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.app.task import Context
    from kombu import Message

    from conductor.broker.shared_breaker import SharedBreaker
    from conductor.store.link import Link

KEY_PREFIX = "celery-task-meta-"


#: In place of the key of a breaker; nothing is there.
UNGUARDED = "conductor:unguarded"


def record_key(task_id: str) -> str:
    """Name the key, and the PUB/SUB channel, of a task's record."""
    return f"{KEY_PREFIX}{task_id}"


def pending_record(task_id: str, name: str, run: str, title: str = "", queue: str = "") -> str:
    """Write the record of a task that waits in a queue; `title` is what its definition calls it."""
    return json.dumps(
        {
            "status": states.PENDING,
            "result": None,
            "traceback": None,
            "children": None,
            "date_done": None,
            "name": name,
            "kwargs": {"run": run},
            "title": title,
            "queue": queue,
            "task_id": task_id,
        }
    )


def title_in(args: Any) -> str:
    """Give the name of the task that a message's arguments define, if they do."""
    task = args[0] if isinstance(args, list) and args else None
    name = task.get("name") if isinstance(task, dict) else None
    return name if isinstance(name, str) else ""


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
    original: Callable[[], Original] = field(repr=False, compare=False)
    """Gives the message that Celery delivered."""
    limit: float | None = None
    """Seconds after which its process is killed."""
    sent_at: float | None = None
    """When it was sent, or replayed, as a Unix time; a retry keeps it."""
    redelivered: bool = False
    """Whether the broker says that somebody had this message before."""

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
            original=partial(Original.of_request, request),
            limit=(request.timelimit or [None])[0],
            sent_at=sent_at_in(request.headers),
            redelivered=bool(request.delivery_info.get("redelivered")),
        )

    @classmethod
    def in_message(cls, message: Message, original: Original) -> Run:
        """Read what kombu delivered, which may be anything; without a task id there is no record of it."""
        given = original.headers.get("id")
        task_id = given if isinstance(given, str) else ""
        try:
            _, kwargs, _ = message.payload
            run_id = str(as_json(kwargs.get("run")) or task_id)
        except Exception:  # noqa: BLE001 - decoding raises what it likes
            run_id = task_id
        name = str(original.headers.get("task") or "unknown")
        return cls(task_id, run_id, name, "", original.queue, 0, [], lambda: original)


@dataclass(frozen=True, slots=True)
class Start:
    """What was found when a run was about to start."""

    lost: int = 0
    """How often it was lost with the process that ran it."""
    before: str = ""
    """The node that started it before this time, and that was lost with it."""
    attempt: int = 0
    """How often it was retried."""
    first_failure: str = ""
    """When it failed for the first time, as ISO text."""
    end: dict[str, Any] | None = None
    """The record of the end, when the run is over and must not start again."""
    refused: bool = False
    """Whether the breaker is open; nothing was filed then."""
    elsewhere: bool = False
    """Whether it was left alone, as the node `before` has started it; nothing was filed then."""

    @property
    def tries(self) -> int:
        """How often it was begun, this time included."""
        return self.attempt + self.lost + 1


class TaskRecords:
    """Files the starts and ends of tasks; lives on one event loop.

    Celery's own writing takes two blocking round trips for each, cannot share them with the saving of the
    agent's state, and would overwrite the end of a task that is delivered once more.
    """

    def __init__(self, link: Link, expires_seconds: int) -> None:
        self._link = link
        self._expires = expires_seconds

    async def start(self, run: Run, breaker: SharedBreaker | None, *, alone: bool = False) -> Start:
        """File the task as STARTED by this process, unless the run is over or the breaker open.

        With `alone` neither where another process has started it.
        """
        started = {
            "status": states.STARTED,
            "result": {"pid": os.getpid(), "hostname": run.node},
            "name": run.name,
            "worker": run.node,
            "queue": run.queue,
            "kwargs": {"run": run.run_id},
            "title": title_in(run.args),
            "task_id": run.task_id,
        }
        arguments: list[str | int] = [json.dumps(started), self._expires, run.retries, run.task_id]
        arguments += [*_rules(breaker, run), int(alone)]
        verdict, first, before, *more = await self._run("start_task", run, breaker, *arguments)
        if verdict == 1:
            return Start(before=before.decode(), end=json.loads(first))
        if verdict == 3:
            return Start(before=before.decode(), elsewhere=True)
        retries, first_failure = more
        return Start(
            lost=first,
            before=before.decode(),
            attempt=retries,
            first_failure=first_failure.decode(),
            refused=verdict == 2,
        )

    async def begun(self, run: Run) -> Start:
        """Give what was found when a run that goes on was started."""
        record = await self._read(run)
        return Start(
            lost=record.get("lost", 0),
            attempt=max(run.retries, record.get("retries", 0)),
            first_failure=record.get("first_failure", ""),
        )

    async def untold(self, run: Run) -> dict[str, Any] | None:
        """Give the record of a failure that a process filed which did not come to telling it."""
        record = await self._read(run)
        return record if LETTER in record else None

    async def succeed(self, run: Run, breaker: SharedBreaker | None, result: dict[str, Any]) -> bool:
        """File the result of a run; False if it has ended already."""
        return await self._end(run, breaker, "success", self._record(run, states.SUCCESS, result))

    async def fail(
        self,
        run: Run,
        breaker: SharedBreaker | None,
        failure: TaskFailed,
        verdict: str = "failure",
        letter: str = "",
    ) -> bool:
        """File the failure of a run, and tell the breaker `verdict`; False if it has ended already.

        With the id of a `letter` nobody is told until `tell`.
        """
        record = self._record(run, states.FAILURE, _described(failure), _traceback_of(failure))
        if letter:
            record = {LETTER: letter, **record}
        return await self._end(run, breaker, verdict, record, tell=not letter)

    async def retry(
        self, run: Run, breaker: SharedBreaker | None, failure: TaskFailed, start: Start, first_failure: str
    ) -> bool:
        """File that a run failed and is to be tried again; False if it has ended meanwhile."""
        record = self._record(run, states.RETRY, _described(failure), _traceback_of(failure))
        record |= {"retries": start.attempt + 1, "lost": start.lost, "first_failure": first_failure}
        return await self._end(run, breaker, "failure", record)

    async def tell(self, run: Run) -> None:
        """Tell who waits of a failure whose letter is in its queue now."""
        key = record_key(run.task_id)
        await self._link.run(["EVAL", script("tell_end"), 1, key, run.run_id], key)

    async def forget_probe(self, run: Run, breaker: SharedBreaker | None) -> None:
        """Let the breaker know that a run which it let through says nothing."""
        if breaker is not None:
            await breaker.forget(run.task_id)

    async def release(self, run: Run) -> None:
        """Note that a run is ended in order to be delivered again."""
        key = record_key(run.task_id)
        await self._link.run(["EVAL", script("release_task"), 1, key, run.run_id], key)

    async def _read(self, run: Run) -> dict[str, Any]:
        """Give the record of a run, an empty one where there is none or that of another run."""
        key = record_key(run.task_id)
        record: dict[str, Any] = json.loads(await self._link.run(["GET", key], key) or "{}")
        kwargs = record.get("kwargs")
        return record if isinstance(kwargs, dict) and kwargs.get("run") == run.run_id else {}

    def _record(
        self, run: Run, status: str, result: dict[str, Any], traceback: str | None = None
    ) -> dict[str, Any]:
        return {
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

    async def _end(
        self,
        run: Run,
        breaker: SharedBreaker | None,
        verdict: str,
        record: dict[str, Any],
        *,
        tell: bool = True,
    ) -> bool:
        if breaker is None:
            verdict = ""
        arguments = [
            json.dumps(record),
            self._expires,
            run.task_id,
            verdict,
            *_rules(breaker, run),
            int(tell),
        ]
        filed, opened = await self._run("end_task", run, breaker, *arguments)
        if opened and breaker is not None:
            breaker.log_opening()
        return bool(filed)

    async def _run(self, name: str, run: Run, breaker: SharedBreaker | None, *arguments: str | int) -> Any:
        key = record_key(run.task_id)
        source = script("breaker", name)
        return await self._link.run(
            ["EVAL", source, 2, key, breaker.key if breaker else UNGUARDED, run.run_id, *arguments], key
        )


def _rules(breaker: SharedBreaker | None, run: Run) -> list[str | int]:
    return breaker.rules(run.limit) if breaker is not None else ["", 0, 0, 0]


def _described(failure: TaskFailed) -> dict[str, Any]:
    return {
        "exc_type": type(failure).__name__,
        "exc_message": list(failure.args),
        "exc_module": type(failure).__module__,
    }


def _traceback_of(failure: TaskFailed) -> str:
    return failure.agent_traceback or str(failure)
