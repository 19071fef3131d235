"""The state of agents and runs, and what is derived from it."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState


def agent(**fields: object) -> AgentState:
    return AgentState.model_validate({"agent_id": "a", "agent_type": "coding", **fields})


def test_agent_state_defaults() -> None:
    assert agent().model_dump(exclude={"created_at", "updated_at"}) == {
        "agent_id": "a",
        "agent_type": AgentType.CODING,
        "status": AgentStatus.IDLE,
        "current_task_id": None,
        "completed_tasks": [],
        "failed_tasks": [],
        "error_count": 0,
        "last_heartbeat": None,
        "metadata": {},
    }


def test_workflow_state_defaults() -> None:
    assert WorkflowState(workflow_id="w").model_dump(exclude={"started_at"}) == {
        "workflow_id": "w",
        "current_phase": WorkflowPhase.DEVELOPMENT,
        "phase_history": [],
        "agent_states": {},
        "task_results": {},
        "completed_at": None,
        "status": TaskStatus.PENDING,
        "error_log": [],
        "feedback_count": 0,
        "metadata": {},
    }


@pytest.mark.parametrize("status", AgentStatus)
def test_only_an_idle_agent_is_available(status: AgentStatus) -> None:
    assert agent(status=status).is_available is (status is AgentStatus.IDLE)


@pytest.mark.parametrize(
    ("completed", "failed", "rate"), [(0, 0, 1.0), (3, 1, 0.75), (0, 2, 0.0), (2, 0, 1.0)]
)
def test_success_rate(completed: int, failed: int, rate: float) -> None:
    state = agent(completed_tasks=["t"] * completed, failed_tasks=["t"] * failed)
    assert state.total_tasks == completed + failed
    assert state.success_rate == rate


@pytest.mark.parametrize("status", TaskStatus)
def test_running_and_complete(status: TaskStatus) -> None:
    state = WorkflowState(status=status)
    assert state.is_running is (status is TaskStatus.IN_PROGRESS)
    assert state.is_complete is (status in {TaskStatus.COMPLETED, TaskStatus.FAILED})


def test_duration_is_none_until_completed() -> None:
    state = WorkflowState()
    assert state.duration_seconds is None
    state.completed_at = state.started_at + timedelta(seconds=2.5)
    assert state.duration_seconds == 2.5


def test_task_counts_go_by_status() -> None:
    statuses = ["completed", "completed", "failed", "skipped", "blocked"]
    results = {
        str(number): TaskResult.model_validate({"task_id": str(number), "agent_id": "a", "status": status})
        for number, status in enumerate(statuses)
    }
    state = WorkflowState(task_results=results)
    assert (state.completed_task_count, state.failed_task_count) == (2, 1)


def test_a_bad_value_cannot_be_assigned() -> None:
    state = agent()
    with pytest.raises(ValidationError, match="status"):
        state.status = "asleep"  # type: ignore[assignment]
    assert state.status is AgentStatus.IDLE
    with pytest.raises(ValidationError, match="error_count"):
        state.error_count = -1


def test_nested_state_survives_json() -> None:
    result = TaskResult(task_id="t", agent_id="a", status=TaskStatus.COMPLETED, output_data={"n": 1})
    state = WorkflowState(agent_states={"a": agent()}, task_results={"t": result}, error_log=[{"e": 1}])
    assert WorkflowState.model_validate_json(state.model_dump_json()) == state
