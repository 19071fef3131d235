"""Agents, tasks, results and workflows as plain validated data."""

from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from conductor.core.enums import AgentType, Priority, TaskStatus, WorkflowPhase
from conductor.core.fields import NonEmptyStr, UtcDatetime, new_id, utc_now


class StrictModel(BaseModel):
    """A model that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


class AgentIdentity(StrictModel):
    """Who an agent is."""

    agent_id: NonEmptyStr = Field(default_factory=new_id)
    agent_type: AgentType
    name: NonEmptyStr
    version: str = "0.1.0"
    description: str | None = None


class TaskDefinition(StrictModel):
    """A piece of work for one agent; `timeout_seconds` bounds its running time.

    `depends_on` holds names or ids of tasks of the same workflow that have to be completed before.
    """

    task_id: NonEmptyStr = Field(default_factory=new_id)
    name: NonEmptyStr
    description: str = ""
    assigned_to: AgentType | None = None
    priority: Priority = Priority.MEDIUM
    input_data: dict[str, Any] = Field(default_factory=dict)
    timeout_seconds: int = Field(default=120, ge=1, le=3600)
    depends_on: list[NonEmptyStr] = Field(default_factory=list)
    created_at: UtcDatetime = Field(default_factory=utc_now)
    metadata: dict[str, Any] = Field(default_factory=dict)


class TaskResult(StrictModel):
    """What came of a task."""

    task_id: NonEmptyStr
    agent_id: NonEmptyStr
    status: TaskStatus
    output_data: dict[str, Any] = Field(default_factory=dict)
    error_message: str | None = None
    started_at: UtcDatetime = Field(default_factory=utc_now)
    completed_at: UtcDatetime | None = None
    duration_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    metadata: dict[str, Any] = Field(default_factory=dict)


def workflow_mark(task: TaskDefinition) -> dict[str, Any]:
    """Give what a result says in its metadata of the workflow that its task belongs to, {} for none.

    Nobody may take it for the result of another workflow's task of this id.
    """
    return {key: value for key, value in task.metadata.items() if key == "workflow_id"}


class WorkflowDefinition(StrictModel):
    """Tasks that belong together, and the phases in which they run.

    `variables` are what `${vars.NAME}` in inputs stands for. `timeout_seconds` bounds the whole run.
    """

    workflow_id: NonEmptyStr = Field(default_factory=new_id)
    name: NonEmptyStr
    description: str = ""
    phases: list[WorkflowPhase] = Field(default_factory=lambda: list(WorkflowPhase))
    tasks: list[TaskDefinition] = Field(default_factory=list)
    variables: dict[str, Any] = Field(default_factory=dict)
    timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    created_at: UtcDatetime = Field(default_factory=utc_now)
    metadata: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tasks")
    @classmethod
    def _distinct_ids(cls, tasks: list[TaskDefinition]) -> list[TaskDefinition]:
        """Refuse two tasks with one id: their results would overwrite each other."""
        twice = [task_id for task_id, count in Counter(task.task_id for task in tasks).items() if count > 1]
        if twice:
            raise ValueError(f"these task_ids are used more than once: {', '.join(map(repr, twice))}")
        return tasks
