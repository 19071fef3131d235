"""What Celery keeps of a task, and how it becomes a TaskResult again."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.core.enums import MessageType, TaskStatus
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage, ErrorPayload, TaskResultPayload
from conductor.core.models import TaskResult
from conductor.core.secrets import scrub
from conductor.core.wording import traceback_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.agents.base import BaseAgent
    from conductor.core.exceptions import AgentError

UNKNOWN_AGENT = "unknown"
TIMED_OUT = "TASK_TIMED_OUT"
CANCELLED = "TASK_CANCELLED"

#: The field of a FAILURE whose dead letter is on its way; the record begins with it, and who waits is not
#: told before it is gone.
LETTER = "letter"


class TaskFailed(Exception):  # noqa: N818 - Celery and Flower show the name to people
    """What a node raises so that Celery files a task under FAILURE.

    `outcome` is JSON-like: the FAILED TaskResult of a dispatched task, the ERROR message of a request. It
    travels in `args`, so it comes back from Celery's JSON.
    """

    def __init__(self, message: str, outcome: dict[str, Any] | None = None) -> None:
        super().__init__(message, outcome)
        self.outcome = outcome or {}

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"TaskFailed({self.args[0]!r})"

    @property
    def error_code(self) -> str:
        """The code of the error, where the outcome has one."""
        metadata, payload = self.outcome.get("metadata"), self.outcome.get("payload")
        error = metadata.get("error") if isinstance(metadata, dict) else None
        for found in (error, payload):
            code = found.get("error_code") if isinstance(found, dict) else None
            if isinstance(code, str):
                return code
        return "TASK_FAILED"

    @property
    def agent_traceback(self) -> str | None:
        """The traceback of the agent, if it has one."""
        return str(self.__cause__.args[0]) if isinstance(self.__cause__, AgentTraceback) else None


class AgentTraceback(Exception):  # noqa: N818 - it is text to be printed, not an error to be handled
    """The traceback of an agent as text, made the cause of a TaskFailed so that Celery prints it."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def failed(message: str, outcome: dict[str, Any], traceback: str | None) -> TaskFailed:
    """Make the exception that stands for a failed agent; `traceback` is the agent's own."""
    error = TaskFailed(message, outcome)
    if traceback:
        error.__cause__ = AgentTraceback(traceback)
    return error


def result_without_agent(
    task_id: str, agent_id: str, status: TaskStatus, message: str, code: str, **metadata: Any
) -> TaskResult:
    """Make the result of a task whose agent could not give one."""
    error = {"error_type": "AgentError", "error_code": code, **metadata}
    return TaskResult(
        task_id=task_id,
        agent_id=agent_id,
        status=status,
        error_message=message,
        completed_at=utc_now(),
        metadata={"error": error},
    )


def timed_out(task_id: str, agent_id: str, seconds: float) -> TaskResult:
    """Make the FAILED result of a task that ran into its time limit."""
    return result_without_agent(
        task_id, agent_id, TaskStatus.FAILED, f"The task timed out after {seconds:g} s.", TIMED_OUT
    )


def cancelled(task_id: str, agent_id: str) -> TaskResult:
    """Make the SKIPPED result of a task that somebody cancelled."""
    return result_without_agent(task_id, agent_id, TaskStatus.SKIPPED, "The task was cancelled.", CANCELLED)


def refused(agent: BaseAgent, task_id: str, error: AgentError) -> TaskResult:
    """Make the FAILED result of a task that ended with an AgentError."""
    return result_without_agent(
        task_id,
        agent.agent_id,
        TaskStatus.FAILED,
        scrub(error.message),
        error.error_code,
        error_type=type(error).__name__,
        traceback=traceback_text(error),
    )


def error_response(
    message: AgentMessage,
    agent_id: str,
    code: str,
    text: str,
    traceback: str | None = None,
    task_id: str | None = None,
) -> AgentMessage:
    """Make the ERROR answer to `message`."""
    payload = ErrorPayload(
        error_code=code, error_message=text, agent_id=agent_id, task_id=task_id, traceback=traceback
    )
    return message.create_response(agent_id, MessageType.ERROR, payload.model_dump(mode="json"))


def task_response(
    message: AgentMessage, agent_id: str, result: TaskResult, response: AgentMessage | None = None
) -> AgentMessage:
    """Make the answer to `message`, whose task ended with `result`.

    It is an ERROR where that stands for an exception, else `response`, if there is one.
    """
    error = result.metadata.get("error")
    if result.status is TaskStatus.FAILED and isinstance(error, dict):
        code, text = str(error.get("error_code") or "UNKNOWN_ERROR"), result.error_message or ""
        return error_response(message, agent_id, code, text, error.get("traceback"), result.task_id)
    if response is not None:
        return response
    payload = TaskResultPayload(result=result).model_dump(mode="json")
    return message.create_response(agent_id, MessageType.TASK_RESULT, payload)


def timeout_response(message: AgentMessage, agent_id: str, seconds: float) -> AgentMessage:
    """Make the ERROR answer of an agent that ran into its time limit."""
    text = f"The agent timed out after {seconds:g} s."
    return error_response(message, agent_id, TIMED_OUT, text, None, assigned_task_id(message))


def assigned_task_id(message: AgentMessage) -> str | None:
    """Give the id of the task that a TASK_ASSIGNMENT carries."""
    task = message.payload.get("task") if message.message_type is MessageType.TASK_ASSIGNMENT else None
    task_id = task.get("task_id") if isinstance(task, dict) else None
    return task_id if isinstance(task_id, str) and task_id else None


def agent_of_node(hostname: str | None) -> str:
    """Give the agent id in a Celery node name, the part before "@"."""
    return (hostname or "").partition("@")[0] or UNKNOWN_AGENT


def decode_meta(task_id: str, raw: bytes | str) -> tuple[str, TaskResult | None]:
    """Read Celery's record of a task: its Celery state, and its TaskResult once it ended."""
    meta: dict[str, Any] = json.loads(raw)
    state = str(meta["status"])
    if state == states.SUCCESS:
        return state, TaskResult.model_validate(meta["result"])
    if state == states.REVOKED:
        return state, cancelled(task_id, agent_of_node(meta.get("worker")))
    if state == states.FAILURE and LETTER not in meta:
        return state, result_in_failure(task_id, meta)
    return state, None


def result_in_failure(task_id: str, meta: Mapping[str, Any]) -> TaskResult:
    """Give the FAILED TaskResult in the record of a FAILURE, or make one of Celery's own."""
    error = meta.get("result") or {}
    arguments = error.get("exc_message") or []
    if error.get("exc_type") == TaskFailed.__name__ and len(arguments) == 2 and arguments[1]:
        return TaskResult.model_validate(arguments[1])
    text = "; ".join(map(str, arguments)) if isinstance(arguments, list) else str(arguments)
    kind = str(error.get("exc_type", "Error"))
    return result_without_agent(
        task_id,
        agent_of_node(meta.get("worker")),
        TaskStatus.FAILED,
        f"{kind}: {text}" if text else kind,
        "TASK_LOST",
        error_type=kind,
        traceback=meta.get("traceback"),
    )


@cache
def script(*names: str) -> str:
    """Read one of this package's Lua files, or several as one script."""
    package = files("conductor.broker")
    return "".join(package.joinpath(f"{name}.lua").read_text() for name in names)
