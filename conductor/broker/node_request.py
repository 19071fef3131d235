"""A task on its way through the parent process of a node."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, TimeLimitExceeded
from celery.worker import state as worker_state
from celery.worker.request import Request, task_ready

from conductor.broker.node_runner import CANCEL_SIGNAL
from conductor.broker.results import TaskFailed
from conductor.broker.task_message import check, sent_at_in
from conductor.core.exceptions import ConductorError
from conductor.core.log_ids import bound_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from billiard.einfo import ExceptionInfo
    from kombu import Message

    from conductor.broker.node import NodeWorker

logger = logging.getLogger(__name__)


def _with_ids(method: Callable[..., Any]) -> Callable[..., Any]:
    """Have what a method of a NodeRequest logs carry the ids of its task."""

    @wraps(method)
    def bound(self: NodeRequest, *arguments: Any, **options: Any) -> Any:
        with bound_ids(self.log_ids):
            return method(self, *arguments, **options)

    return bound


class NodeRequest(Request):  # type: ignore[misc]
    """Celery's request with two more ends: a time limit gives a TaskResult, and a task can be cancelled."""

    _cancelled = False
    _already_revoked: bool = False

    def __init__(self, message: Message, **options: Any) -> None:
        """InvalidTaskError: nobody could work on it."""
        super().__init__(message, **options)
        check(self)
        self.node.logging.note(self)

    @cached_property
    def log_ids(self) -> dict[str, str | None]:
        """The ids of lines about it."""
        queue = self.delivery_info.get("routing_key")
        return self.node.logging.ids_of(self.id, self._args, self._kwargs, queue)

    @property
    def node(self) -> NodeWorker:
        """The node this process is the parent of."""
        return self._app.node  # type: ignore[no-any-return]

    @property
    def run(self) -> str | None:
        """Which run of the task this is; None for a request to an agent."""
        run = self._kwargs.get("run")
        return run if isinstance(run, str) else None

    @property
    def run_by_agent(self) -> str | None:
        """The agent that was asked; None for a dispatched task."""
        agent_id = self._kwargs.get("agent_id")
        return agent_id if isinstance(agent_id, str) else None

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event; that of the start says how many seconds the task waited, if that is known."""
        sent = sent_at_in(self.request_dict)
        if type == "task-started" and sent is not None:
            due = self.eta.timestamp() if self.eta is not None else 0.0
            fields["waited"] = max(time.time() - max(sent, due), 0.0)
        super().send_event(type, **fields)

    def maybe_expire(self) -> bool:
        """Tell whether nobody waits for it any more.

        Celery's would refuse the id for hours: also when the same message is asked once more.
        """
        return bool(self.expires and datetime.now(UTC) > self.expires)

    @_with_ids
    def revoked(self) -> bool:
        """Tell whether it must not run; a task that expired becomes a dead letter.

        An expired request does not: who asked has been told that there is no answer.
        """
        if self._already_revoked or self.run_by_agent is not None or not self.maybe_expire():
            return bool(super().revoked())
        task_ready(self)
        try:
            self.node.desk.expire(self)
        except (ConductorError, TimeoutError):
            logger.exception("That %s[%s] expired cannot be filed: it is delivered again", self.name, self.id)
            self.reject(requeue=True)
            return True
        logger.warning("%s[%s] expired", self.name, self.id)
        self.send_event("task-failed", exception="TaskFailed('expired')", traceback=None)
        self.acknowledge()
        self._already_revoked = True
        return True

    @_with_ids
    def on_timeout(self, soft: bool, timeout: float) -> None:
        """End a task that went on after its soft limit; its process is killed next, by the pool."""
        if soft or self._cancelled:
            super().on_timeout(soft, timeout)
            return
        task_ready(self)
        seconds = self.time_limits[1] or timeout
        logger.error("%s[%s] timed out after %s s and ignored it", self.name, self.id, seconds)
        try:
            self._file_timeout(float(seconds))
        except (ConductorError, TimeoutError):
            logger.exception("The end of %s[%s] cannot be filed: it is delivered again", self.name, self.id)
            self.reject(requeue=True)
        else:
            self.acknowledge()

    @_with_ids
    def on_failure(
        self,
        exc_info: ExceptionInfo,
        send_failed_event: bool = True,
        return_ok: bool = False,
    ) -> None:
        """Also end a task that was cancelled while it ran."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, TimeLimitExceeded):
            return  # The pool calls `on_timeout` next.
        if self._cancelled and not self._already_revoked:
            if not isinstance(error, Ignore):  # else the child has filed it
                self.node.desk.cancel(self)
            self._announce_revoked("cancelled", terminated=True, signum=str(CANCEL_SIGNAL), expired=False)
            return
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    @_with_ids
    def cancel(self, pool: Any, signal: str | None = None, emit_retry: bool = True) -> None:
        """End a task whose connection to the broker is gone: it will be delivered again.

        Celery 5.7 would first file it under RETRY, and take it for revoked where that fails because the
        result backend is gone as well: the task would be lost.
        """
        self._already_cancelled = True
        self.node.desk.release(self)
        super().cancel(pool, signal, emit_retry=False)

    @_with_ids
    def terminate(self, pool: Any, signal: str | None = None) -> None:
        """End a task that was cancelled by ending its process."""
        if self.time_start and not self._already_revoked:
            self.node.desk.cancel(self)
        super().terminate(pool, signal)

    @_with_ids
    def cancel_run(self, pool: Any, grace: float, call_later: Any) -> None:
        """Have the agent's coroutine cancelled, and its process killed if that takes over `grace` seconds."""
        if self._cancelled:
            return
        self._cancelled = True
        if self.worker_pid:
            os.kill(self.worker_pid, CANCEL_SIGNAL)
        call_later(grace, self._kill_if_running, (pool,))

    def on_success(self, failed__retval__runtime: Any, **options: Any) -> Any:
        """See `celery.worker.request.Request`; it may acknowledge in vain, and says so then."""
        with bound_ids(self.log_ids):
            return super().on_success(failed__retval__runtime, **options)

    @_with_ids
    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Also pass on what was cancelled on its way to the child, and fetch what comes next."""
        super().on_accepted(pid, time_accepted)
        self._count_by_type()
        if self._cancelled:
            os.kill(pid, CANCEL_SIGNAL)
        self.node.take_ahead()

    def _count_by_type(self) -> None:
        """Count it under the name of its Celery task: those that people read are without number."""
        if self.name != self.type:
            worker_state.total_count.subtract((self.name,))
            worker_state.total_count.update((self.type,))
            if not worker_state.total_count[self.name]:
                del worker_state.total_count[self.name]

    @_with_ids
    def _kill_if_running(self, pool: Any) -> None:
        job = self._apply_result and self._apply_result()
        if job is not None and not job.ready():
            logger.warning("%s[%s] ignores that it was cancelled: killing its process", self.name, self.id)
            self.terminate(pool, "KILL")

    def _file_timeout(self, seconds: float) -> None:
        self.node.desk.time_out(self, seconds)
        self.send_event("task-failed", exception=repr(TaskFailed("timed out")), traceback=None)
