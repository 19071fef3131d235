"""The two Celery tasks, as they run in the child process of a node."""

from __future__ import annotations

from traceback import format_exception
from typing import TYPE_CHECKING, Any, NoReturn

from celery import states
from celery.exceptions import Ignore

from conductor.broker.node_intake import HANDLE_MESSAGE
from conductor.broker.node_runner import Interrupted, Reason
from conductor.broker.results import (
    assigned_task_id,
    error_response,
    failed,
    refused,
    timeout_response,
)
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition, TaskResult

if TYPE_CHECKING:
    from celery import Celery, Task

    from conductor.broker.node_host import AgentHost
    from conductor.broker.records import TaskRecords

EXECUTE_TASK = "conductor.execute_task"
NODE_REQUEST = "conductor.broker.node_request:NodeRequest"

#: How often a task is started before it is given up because it kills the process it runs in.
MAX_ATTEMPTS = 3


def register(app: Celery) -> None:
    """Give the tasks to `app`."""
    # STARTED is written by TaskRecords.
    options = {"bind": True, "Request": NODE_REQUEST, "track_started": False, "typing": False}
    app.task(execute_task, name=EXECUTE_TASK, **options)
    app.task(handle_message, name=HANDLE_MESSAGE, **options)


def execute_task(self: Task, task: dict[str, Any], run: str) -> dict[str, Any]:
    """Have one of the node's agents do a task; the result is a TaskResult as JSON.

    A FAILED one is raised as TaskFailed, which makes the Celery task a FAILURE.
    """
    host = _host(self)
    definition = TaskDefinition.model_validate(task)
    agent = host.agent_for(self.request.delivery_info["routing_key"], definition)
    start = _records(self).start(self.request, run)
    if start.end is not None:
        raise Ignore  # It was done, or cancelled, before this delivery.
    if start.attempt > MAX_ATTEMPTS:
        result = refused(agent, definition.task_id, _given_up(definition.task_id, agent.agent_id))
        host.file(agent, result)
    else:
        result = host.execute(agent, definition)
    outcome = result.model_dump(mode="json")
    if result.status is TaskStatus.SKIPPED and host.was_cancelled:
        raise Ignore  # The parent files it as REVOKED.
    if result.status is TaskStatus.FAILED:
        error = result.metadata.get("error")
        traceback = error.get("traceback") if isinstance(error, dict) else None
        raise failed(result.error_message or "The task failed.", outcome, traceback)
    return outcome


def handle_message(
    self: Task, message: dict[str, Any], agent_id: str, reply_to: str | None, run: str
) -> dict[str, Any]:
    """Have an agent answer a message; the result is the answer as JSON, and who asked is sent it.

    An agent that raises makes an ERROR answer, and the Celery task a FAILURE.
    """
    host = _host(self)
    request = AgentMessage.model_validate(message)
    agent = host.agent(agent_id)
    start = _records(self).start(self.request, run)
    if start.end is not None:
        _answer_again(host, start.end, reply_to)
    try:
        if start.attempt > MAX_ATTEMPTS:
            raise _given_up(self.request.id, agent_id)
        response = host.answer(agent, request)
    except Interrupted as interruption:
        if interruption.reason is Reason.CANCELLED:
            raise Ignore from interruption
        seconds = self.request.timelimit[1]
        response = timeout_response(request, agent_id, seconds)
        host.file_timeout(agent, request, seconds)
    except Exception as raised:  # noqa: BLE001 - whatever an agent raises is its answer
        response = _raised_response(request, agent_id, raised)
    response = _as_error(request, agent_id, response)
    host.reply(response, reply_to)
    outcome = response.model_dump(mode="json")
    if response.message_type is MessageType.ERROR:
        raise failed(response.payload["error_message"], outcome, response.payload["traceback"])
    return outcome


def _as_error(request: AgentMessage, agent_id: str, response: AgentMessage | None) -> AgentMessage:
    """Make an ERROR of no answer at all, and of a result that stands for an exception."""
    if response is None:
        text = f"Agent {agent_id} has no answer to a {request.message_type.value} message."
        return error_response(request, agent_id, "NO_RESPONSE", text)
    if response.message_type is not MessageType.TASK_RESULT:
        return response
    result = TaskResult.model_validate(response.payload["result"])
    error = result.metadata.get("error")
    if result.status is not TaskStatus.FAILED or not isinstance(error, dict):
        return response
    return error_response(
        request,
        agent_id,
        str(error.get("error_code") or "UNKNOWN_ERROR"),
        result.error_message or "",
        error.get("traceback"),
        result.task_id,
    )


def _raised_response(request: AgentMessage, agent_id: str, raised: Exception) -> AgentMessage:
    return error_response(
        request,
        agent_id,
        str(getattr(raised, "error_code", "UNKNOWN_ERROR")),
        str(raised) or type(raised).__name__,
        "".join(format_exception(raised)),
        assigned_task_id(request),
    )


def _answer_again(host: AgentHost, end: dict[str, Any], reply_to: str | None) -> NoReturn:
    """Send the stored answer of a request that was delivered once more after it had been answered."""
    stored = end.get("result")
    if end["status"] == states.FAILURE and isinstance(stored, dict):
        arguments = stored.get("exc_message") or []
        stored = arguments[1] if len(arguments) == 2 else None
    if isinstance(stored, dict) and "message_type" in stored:
        host.reply(AgentMessage.model_validate(stored), reply_to)
    raise Ignore


def _host(task: Task) -> AgentHost:
    node = task.app.node
    if node is None or node.host is None:
        raise ConductorError(f"{task.name} runs only in a node that hosts agents.", "NOT_A_NODE")
    return node.host  # type: ignore[no-any-return]


def _records(task: Task) -> TaskRecords:
    return task.app.node.records  # type: ignore[no-any-return]


def _given_up(task_id: str, agent_id: str) -> AgentError:
    return AgentError(
        f"Task {task_id} was given up: the process that runs it died {MAX_ATTEMPTS} times.",
        agent_id,
        task_id,
        "TASK_GIVEN_UP",
    )
