"""Agents, tasks, results, workflows: defaults, bounds and what is refused."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError

from conductor.core.enums import AgentType, Priority, TaskStatus, WorkflowPhase
from conductor.core.messages import (
    AgentMessage,
    ErrorPayload,
    FeedbackPayload,
    StatusUpdatePayload,
    TaskAssignmentPayload,
    TaskResultPayload,
)
from conductor.core.models import AgentIdentity, TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import AgentState, WorkflowState

TASK: dict[str, Any] = {"name": "build"}
RESULT: dict[str, Any] = {"task_id": "t", "agent_id": "a", "status": "completed"}
SMALLEST: dict[type[BaseModel], dict[str, Any]] = {
    AgentIdentity: {"agent_type": "coding", "name": "Ada"},
    TaskDefinition: TASK,
    TaskResult: RESULT,
    WorkflowDefinition: {"name": "release"},
    AgentMessage: {"message_type": "control", "sender_id": "a"},
    TaskAssignmentPayload: {"task": TASK},
    TaskResultPayload: {"result": RESULT},
    FeedbackPayload: {"source_agent_id": "a"},
    ErrorPayload: {"error_code": "X", "error_message": "no"},
    StatusUpdatePayload: {"agent_id": "a", "status": "idle"},
    AgentState: {"agent_type": "coding"},
    WorkflowState: {},
}
MODELS = list(SMALLEST)


@pytest.mark.parametrize("model", MODELS)
def test_unknown_fields_are_refused(model: type[BaseModel]) -> None:
    model(**SMALLEST[model])
    with pytest.raises(ValidationError, match="surprise"):
        model(**SMALLEST[model], surprise=1)


@pytest.mark.parametrize("model", MODELS)
def test_each_required_field_is_required(model: type[BaseModel]) -> None:
    for missing in SMALLEST[model]:
        with pytest.raises(ValidationError, match=missing):
            model(**{key: value for key, value in SMALLEST[model].items() if key != missing})


@pytest.mark.parametrize("model", MODELS)
def test_json_round_trip_gives_an_equal_model(model: type[BaseModel]) -> None:
    made = model(**SMALLEST[model])
    assert model.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (AgentIdentity, "agent_id"),
        (TaskDefinition, "task_id"),
        (WorkflowDefinition, "workflow_id"),
        (AgentMessage, "message_id"),
        (AgentState, "agent_id"),
        (WorkflowState, "workflow_id"),
    ],
)
def test_ids_default_to_a_fresh_uuid_and_are_never_empty(model: type[BaseModel], field: str) -> None:
    first, second = (getattr(model(**SMALLEST[model]), field) for _ in range(2))
    assert first != second
    assert str(UUID(first, version=4)) == first
    with pytest.raises(ValidationError, match=field):
        model(**SMALLEST[model], **{field: ""})


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (TaskDefinition, "created_at"),
        (TaskResult, "started_at"),
        (TaskResult, "completed_at"),
        (WorkflowDefinition, "created_at"),
        (AgentMessage, "timestamp"),
        (AgentState, "last_heartbeat"),
        (AgentState, "created_at"),
        (AgentState, "updated_at"),
        (WorkflowState, "started_at"),
        (WorkflowState, "completed_at"),
    ],
)
def test_times_become_utc_and_naive_ones_are_refused(model: type[BaseModel], field: str) -> None:
    there = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    value = getattr(model(**SMALLEST[model], **{field: there}), field)
    assert value == there
    assert value.tzinfo is UTC
    assert value.hour == 10
    with pytest.raises(ValidationError, match="should have timezone info"):
        model(**SMALLEST[model], **{field: datetime(2026, 5, 1, 12)})  # noqa: DTZ001


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (TaskDefinition, "created_at"),
        (TaskResult, "started_at"),
        (WorkflowDefinition, "created_at"),
        (AgentMessage, "timestamp"),
        (AgentState, "created_at"),
        (AgentState, "updated_at"),
        (WorkflowState, "started_at"),
    ],
)
def test_times_default_to_now(model: type[BaseModel], field: str) -> None:
    before = datetime.now(UTC)
    assert before <= getattr(model(**SMALLEST[model]), field) <= datetime.now(UTC)


def without_own_id_and_time(made: BaseModel) -> dict[str, Any]:
    return made.model_dump(exclude={"task_id", "workflow_id", "created_at", "started_at"})


def test_agent_identity_defaults() -> None:
    identity = AgentIdentity(agent_type=AgentType.CODING, name="Ada")
    assert (identity.version, identity.description) == ("0.1.0", None)


def test_task_definition_defaults() -> None:
    assert without_own_id_and_time(TaskDefinition(name="build")) == {
        "name": "build",
        "description": "",
        "assigned_to": None,
        "priority": Priority.MEDIUM,
        "input_data": {},
        "timeout_seconds": 120,
        "depends_on": [],
        "metadata": {},
    }


def test_task_result_defaults() -> None:
    assert without_own_id_and_time(TaskResult(task_id="t", agent_id="a", status=TaskStatus.COMPLETED)) == {
        "agent_id": "a",
        "status": TaskStatus.COMPLETED,
        "output_data": {},
        "error_message": None,
        "completed_at": None,
        "duration_seconds": None,
        "metadata": {},
    }


def test_workflow_definition_defaults() -> None:
    assert without_own_id_and_time(WorkflowDefinition(name="release")) == {
        "name": "release",
        "description": "",
        "phases": [WorkflowPhase.DEVELOPMENT, WorkflowPhase.DEVOPS, WorkflowPhase.MONITORING],
        "tasks": [],
        "variables": {},
        "timeout_seconds": None,
        "metadata": {},
    }


def test_defaults_are_not_shared() -> None:
    TaskDefinition(name="a").input_data["x"] = 1
    WorkflowDefinition(name="a").phases.clear()
    assert TaskDefinition(name="b").input_data == {}
    assert len(WorkflowDefinition(name="b").phases) == 3


@pytest.mark.parametrize("seconds", [1, 3600])
def test_timeout_bounds_are_allowed(seconds: int) -> None:
    assert TaskDefinition(name="x", timeout_seconds=seconds).timeout_seconds == seconds


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (TaskDefinition, "timeout_seconds", 0),
        (TaskDefinition, "timeout_seconds", 3601),
        (TaskDefinition, "assigned_to", "painter"),
        (TaskDefinition, "priority", "URGENT"),
        (TaskDefinition, "input_data", [1]),
        (TaskResult, "duration_seconds", -0.1),
        (TaskResult, "duration_seconds", float("nan")),
        (AgentMessage, "ttl_seconds", 0),
        (AgentMessage, "payload", "text"),
        (StatusUpdatePayload, "progress_percent", -1),
        (StatusUpdatePayload, "progress_percent", 100.1),
        (AgentState, "error_count", -1),
        (WorkflowState, "feedback_count", -1),
    ],
)
def test_values_out_of_bounds_are_refused(model: type[BaseModel], field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        model(**SMALLEST[model], **{field: value})


def test_a_workflow_with_two_tasks_of_one_id_is_refused() -> None:
    tasks = [{"name": name, "task_id": task_id} for name, task_id in (("a", "t1"), ("b", "t2"), ("c", "t1"))]
    with pytest.raises(ValidationError, match="more than once: 't1'"):
        WorkflowDefinition.model_validate({"name": "release", "tasks": tasks})


@pytest.mark.parametrize("percent", [0, 100])
def test_progress_bounds_are_allowed(percent: int) -> None:
    assert (
        StatusUpdatePayload.model_validate(
            {"agent_id": "a", "status": "running", "progress_percent": percent}
        ).progress_percent
        == percent
    )
