"""The two Celery tasks, as they run in the main thread of a node's child process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore

from conductor.broker.backend import FILED
from conductor.broker.node_intake import DEFAULT_LIMIT, HANDLE_MESSAGE
from conductor.broker.records import Run
from conductor.broker.results import TaskFailed
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition

if TYPE_CHECKING:
    from celery import Celery, Task

    from conductor.broker.node_host import AgentHost
    from conductor.broker.node_work import Outcome

EXECUTE_TASK = "conductor.execute_task"
NODE_REQUEST = "conductor.broker.node_request:NodeRequest"


def register(app: Celery) -> None:
    """Give the tasks to `app`."""
    # STARTED is filed by TaskRecords.
    options = {"bind": True, "Request": NODE_REQUEST, "track_started": False, "typing": False}
    app.task(execute_task, name=EXECUTE_TASK, **options)
    app.task(handle_message, name=HANDLE_MESSAGE, **options)


def execute_task(self: Task, task: dict[str, Any], run: str | None = None) -> dict[str, Any]:
    """Have one of the node's agents do a task; the result is a TaskResult as JSON.

    `run` tells apart the runs of one task id; a Celery client that never sends an id twice needs none.
    A FAILED one is raised as TaskFailed, which makes the Celery task a FAILURE.
    """
    definition = TaskDefinition.model_validate(task)
    return _told(self, _host(self).execute(Run.of(self.request, run or self.request.id), definition))


def handle_message(
    self: Task, message: dict[str, Any], agent_id: str, reply_to: str | None = None, run: str | None = None
) -> dict[str, Any]:
    """Have an agent answer a message; the result is the answer as JSON, and who asked is sent it.

    An agent that raises makes an ERROR answer, and the Celery task a FAILURE.
    """
    request = AgentMessage.model_validate(message)
    seconds = self.request.timelimit[1] or DEFAULT_LIMIT
    return _told(
        self,
        _host(self).answer(
            Run.of(self.request, run or self.request.id), agent_id, request, reply_to, seconds
        ),
    )


def _told(task: Task, outcome: Outcome) -> dict[str, Any]:
    """Tell Celery what became of a task whose end is filed already."""
    if outcome is None:
        raise Ignore
    setattr(task.request, FILED, True)
    if isinstance(outcome, TaskFailed):
        raise outcome
    return outcome


def _host(task: Task) -> AgentHost:
    node = task.app.node
    if node is None or node.host is None:
        raise ConductorError(f"{task.name} runs only in a node that hosts agents.", "NOT_A_NODE")
    return node.host  # type: ignore[no-any-return]
