"""States for tests, with times that can be compared."""

from datetime import UTC, datetime, timedelta
from typing import Any

from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState

START = datetime(2026, 1, 1, tzinfo=UTC)


def agent(agent_id: str, age: int = 0, **fields: Any) -> AgentState:
    """An agent state born `age` seconds before START."""
    born = START - timedelta(seconds=age)
    return AgentState(agent_id=agent_id, **{"agent_type": AgentType.CODING, "created_at": born} | fields)


def workflow(workflow_id: str, age: int = 0, **fields: Any) -> WorkflowState:
    """A workflow state born `age` seconds before START."""
    return WorkflowState(workflow_id=workflow_id, started_at=START - timedelta(seconds=age), **fields)


def result(
    task_id: str, age: int = 0, status: TaskStatus = TaskStatus.COMPLETED, **fields: Any
) -> TaskResult:
    """A task result born `age` seconds before START."""
    started = START - timedelta(seconds=age)
    return TaskResult(task_id=task_id, agent_id="a", status=status, started_at=started, **fields)
