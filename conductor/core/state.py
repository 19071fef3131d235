"""What is remembered about agents and workflow runs."""

from typing import Any

from pydantic import ConfigDict, Field

from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase
from conductor.core.fields import NonEmptyStr, UtcDatetime, new_id, utc_now
from conductor.core.models import StrictModel, TaskResult


class AgentState(StrictModel):
    """The state of one agent; assigning to a field validates the value."""

    model_config = ConfigDict(validate_assignment=True)

    agent_id: NonEmptyStr = Field(default_factory=new_id)
    agent_type: AgentType
    status: AgentStatus = AgentStatus.IDLE
    current_task_id: str | None = None
    completed_tasks: list[str] = Field(default_factory=list)
    failed_tasks: list[str] = Field(default_factory=list)
    error_count: int = Field(default=0, ge=0)
    last_heartbeat: UtcDatetime | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: UtcDatetime = Field(default_factory=utc_now)
    updated_at: UtcDatetime = Field(default_factory=utc_now)

    @property
    def is_available(self) -> bool:
        """Tell whether the agent may be given a task."""
        return self.status is AgentStatus.IDLE

    @property
    def total_tasks(self) -> int:
        """Count the tasks that ended, well or not."""
        return len(self.completed_tasks) + len(self.failed_tasks)

    @property
    def success_rate(self) -> float:
        """Give the share of tasks that ended well, 1.0 before the first one."""
        return len(self.completed_tasks) / self.total_tasks if self.total_tasks else 1.0


class WorkflowState(StrictModel):
    """The state of one workflow run; assigning to a field validates the value."""

    model_config = ConfigDict(validate_assignment=True)

    workflow_id: NonEmptyStr = Field(default_factory=new_id)
    current_phase: WorkflowPhase = WorkflowPhase.DEVELOPMENT
    phase_history: list[dict[str, Any]] = Field(default_factory=list)
    agent_states: dict[str, AgentState] = Field(default_factory=dict)
    task_results: dict[str, TaskResult] = Field(default_factory=dict)
    started_at: UtcDatetime = Field(default_factory=utc_now)
    completed_at: UtcDatetime | None = None
    status: TaskStatus = TaskStatus.PENDING
    error_log: list[dict[str, Any]] = Field(default_factory=list)
    feedback_count: int = Field(default=0, ge=0)
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Tell whether the run is under way."""
        return self.status is TaskStatus.IN_PROGRESS

    @property
    def is_complete(self) -> bool:
        """Tell whether the run ended, well or not."""
        return self.status in (TaskStatus.COMPLETED, TaskStatus.FAILED)

    @property
    def duration_seconds(self) -> float | None:
        """Give how long the run took in seconds, None while it is not over."""
        if self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()

    @property
    def completed_task_count(self) -> int:
        """Count the results with status COMPLETED."""
        return self._count(TaskStatus.COMPLETED)

    @property
    def failed_task_count(self) -> int:
        """Count the results with status FAILED."""
        return self._count(TaskStatus.FAILED)

    def _count(self, status: TaskStatus) -> int:
        return sum(result.status is status for result in self.task_results.values())
