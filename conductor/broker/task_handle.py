"""What a program holds of a task that it dispatched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from celery import states

from conductor.core.enums import TaskStatus
from conductor.core.exceptions import ConductorError
from conductor.core.tracing import HERE, ended_in, span_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

    from conductor.broker.result_listener import FollowedTask
    from conductor.core.models import TaskResult

_STATUS = {states.PENDING: TaskStatus.PENDING, states.RETRY: TaskStatus.PENDING}


class TaskHandle:
    """A dispatched task; belongs to the event loop of its Conductor."""

    def __init__(
        self,
        followed: FollowedTask,
        run: str,
        cancel: Callable[[str, str], Awaitable[bool]],
        hint: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`hint` gives a sentence about what a task may be waiting for, if there is something to say."""
        self._followed = followed
        self._run = run
        self._cancel = cancel
        self._hint = hint

    def __repr__(self) -> str:
        return f"<TaskHandle {self.task_id} {self.status().value}>"

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self._followed.task_id

    def status(self) -> TaskStatus:
        """Tell what is known now: nodes announce every change."""
        ended = self._followed.ended
        if ended.done() and not ended.cancelled() and ended.exception() is None:
            return ended.result().status
        return _STATUS.get(self._followed.state, TaskStatus.IN_PROGRESS)

    async def result(self, timeout: float | None = None) -> TaskResult:
        """Wait for the result, of whatever status; a cancelled task is SKIPPED.

        After `timeout` seconds: ConductorError, code TASK_TIMEOUT, which says so where nobody is there to do
        the task. The task goes on, and may be waited for again.
        """
        with self.waiting() as span:
            if await self.ends_within(timeout):
                return ended_in(span, self._followed.ended.result())
            raise await self._not_ended(timeout)

    def waiting(self) -> AbstractContextManager[Span | None]:
        """Be in the span of who waits for the result, in the trace of the dispatch."""
        followed = self._followed
        attributes = {"messaging.operation.type": "receive", "conductor.task.id": self.task_id}
        parent = followed.trace or HERE
        return span_of(f"result {followed.name or 'task'}", "consumer", attributes, parent)

    def ended(self) -> TaskResult:
        """Give the result of a task that has ended."""
        return self._followed.ended.result()

    async def _not_ended(self, timeout: float | None) -> ConductorError:
        hint = await self._hint() if self._hint and self.status() is TaskStatus.PENDING else ""
        return ConductorError(
            f"Task {self.task_id} has not ended within {timeout:g} s: it is {self.status().value} and goes "
            f"on.{hint and f' {hint}'}",
            "TASK_TIMEOUT",
            {"task_id": self.task_id, "timeout_seconds": timeout, "status": self.status().value},
        )

    async def ends_within(self, timeout: float | None) -> bool:
        """Wait for the end, `timeout` seconds at most; tells whether it is there."""
        await asyncio.wait({self._followed.ended}, timeout=timeout)
        return self._followed.ended.done()

    async def cancel(self) -> bool:
        """Cancel the task, also while it runs; False if it has ended before.

        Returns when it is asked for: the result tells when it is done, or that the task was quicker.
        MessageBusError, code BROKER_UNAVAILABLE: a node that runs the task could not be told.
        """
        return await self._cancel(self.task_id, self._run)
