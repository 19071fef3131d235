"""The two Celery tasks, as they run in the main thread of a node's child process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as Retried
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from conductor.broker import topology
from conductor.broker.backend import FILED
from conductor.broker.node_errors import Later, Retry
from conductor.broker.node_intake import DEFAULT_LIMIT, HANDLE_MESSAGE
from conductor.broker.records import Run
from conductor.broker.results import TaskFailed, assigned_task_id
from conductor.broker.transport import system_of
from conductor.core.exceptions import ConductorError, MessageBusError, StateError
from conductor.core.messages import AgentMessage, TaskAssignmentPayload
from conductor.core.models import TaskDefinition
from conductor.core.tracing import code_of, find_tracing, task_attributes, trace_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery, Task

    from conductor.broker.node_host import AgentHost
    from conductor.broker.node_work import Outcome

EXECUTE_TASK = "conductor.execute_task"
NODE_REQUEST = "conductor.broker.node_request:NodeRequest"


def register(app: Celery) -> None:
    """Give the tasks to `app`."""
    # STARTED is filed by TaskRecords, and the retry policy says how often a task is tried.
    options = {
        "bind": True,
        "Request": NODE_REQUEST,
        "track_started": False,
        "typing": False,
        "max_retries": None,
    }
    app.task(execute_task, name=EXECUTE_TASK, **options)
    app.task(handle_message, name=HANDLE_MESSAGE, **options)


def execute_task(
    self: Task, task: dict[str, Any] | None = None, run: str | None = None, **_: Any
) -> dict[str, Any]:
    """Have one of the node's agents do a task; the result is a TaskResult as JSON.

    `run` tells apart the runs of one task id; a Celery client that never sends an id twice needs none.
    A FAILED one is raised as TaskFailed, which makes the Celery task a FAILURE.
    """
    host, this = _host(self), Run.of(self.request, run or self.request.id)
    with _in_span(self, this, task), _delivered_again():
        try:
            definition = TaskDefinition.model_validate(task)
        except ValidationError as error:
            return _told(self, host.refuse(this, _sentence("task", error)))
        return _told(self, host.execute(this, definition))


def handle_message(
    self: Task,
    message: dict[str, Any] | None = None,
    agent_id: str = "",
    reply_to: str | None = None,
    run: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Have an agent answer a message; the result is the answer as JSON, and who asked is sent it.

    An agent that raises makes an ERROR answer, and the Celery task a FAILURE. A task that is assigned without
    `reply_to` is done as by `execute_task`.
    """
    host, this = _host(self), Run.of(self.request, run or self.request.id)
    with _in_span(self, this, message), _delivered_again():
        try:
            request = AgentMessage.model_validate(message)
        except ValidationError as error:
            return _told(self, host.refuse(this, _sentence("message", error)))
        if not reply_to and (task_id := assigned_task_id(request)):
            try:
                task = TaskAssignmentPayload.model_validate(request.payload).task
            except ValidationError as error:
                return _told(self, host.refuse(this, _sentence("assignment", error), task_id))
            return _told(self, host.carry_out(this, agent_id, request, task))
        seconds = (self.request.timelimit or (None, None))[1] or DEFAULT_LIMIT
        return _told(self, host.answer(this, agent_id, request, reply_to, seconds))


@contextmanager
def _in_span(task: Task, run: Run, given: dict[str, Any] | None) -> Iterator[None]:
    """Be in the span of one try at a task, below whatever sent it; nothing where there is no tracing."""
    tracing = find_tracing()
    if tracing is None:
        yield
        return
    name, attributes = _described(given)
    attributes |= {
        "messaging.system": system_of(task.app.addresses.broker_url),
        "messaging.operation.type": "process",
        "messaging.destination.name": run.queue,
        "messaging.message.id": run.run_id,
        "conductor.node": run.node,
        "conductor.attempt": run.retries + 1,
        "conductor.redelivered": run.redelivered,
    }
    ended: Ignore | Retried | None = None
    with tracing.span(f"process {name}", "consumer", attributes, trace_headers(task.request.headers)) as span:
        try:
            yield
        except Ignore as error:
            ended = error  # It is filed elsewhere how.
        except Retried as error:
            ended = error
            tracing.fail(span, code_of(error.exc))
    if ended is not None:
        raise ended


def _described(given: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Give the name of what a message holds, and the attributes for it; it may be anything."""
    try:
        message = AgentMessage.model_validate(given) if "payload" in (given or {}) else None
        task = given if message is None else message.payload.get("task")
        attributes = task_attributes(TaskDefinition.model_validate(task))
    except ValidationError:
        attributes = {}
    else:
        return attributes["conductor.task.name"], attributes
    if message is None:
        return "task", attributes
    return message.message_type.value, {"messaging.message.conversation_id": message.correlation_id}


@contextmanager
def _delivered_again() -> Iterator[None]:
    """Have Celery deliver again what could not be filed because a server is away."""
    try:
        yield
    except (StateError, MessageBusError) as error:
        raise Reject(error, requeue=True) from error


def _told(task: Task, outcome: Outcome) -> dict[str, Any]:
    """Tell Celery what became of a task whose end is filed already."""
    if outcome is None:
        raise Ignore
    if isinstance(outcome, Later):
        _send_later(task, outcome.seconds)
        raise Ignore
    setattr(task.request, FILED, True)
    if isinstance(outcome, Retry):
        # So that Flower shows the traceback of the agent as the reason.
        raise _sent_again(task, outcome) from outcome.failure
    if isinstance(outcome, TaskFailed):
        raise outcome
    return outcome


def _sent_again(task: Task, outcome: Retry) -> BaseException:
    """Send the task once more, by Celery's retry; it waits on a node that can do others meanwhile."""
    request = task.request
    try:
        again: BaseException = task.retry(
            countdown=outcome.seconds,
            exc=outcome.failure,
            throw=False,
            queue=topology.work_queue(request.delivery_info["routing_key"]),
            # It was begun in time.
            expires=None,
            argsrepr=request.argsrepr,
            kwargsrepr=request.kwargsrepr,
        )
    except Reject as error:
        # Celery 5.7 would drop a task that it cannot send again.
        again = Reject(error.reason, requeue=True)
    return again


def _send_later(task: Task, seconds: float) -> None:
    """Send the message once more as it is; it does not count as another try."""
    request = task.request
    again = task.signature_from_request(
        request,
        countdown=seconds,
        queue=topology.work_queue(request.delivery_info["routing_key"]),
        expires=None,
        argsrepr=request.argsrepr,
        kwargsrepr=request.kwargsrepr,
    )
    try:
        again.apply_async()
    except OperationalError as error:
        raise Reject(error, requeue=True) from error


def _sentence(what: str, error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    return f"This is no valid {what}: {f'{field}: ' if field else ''}{problem['msg']}."


def _host(task: Task) -> AgentHost:
    node = task.app.node
    if node is None or node.host is None:
        raise ConductorError(f"{task.name} runs only in a node that hosts agents.", "NOT_A_NODE")
    return node.host  # type: ignore[no-any-return]
