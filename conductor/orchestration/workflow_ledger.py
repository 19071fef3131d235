"""The books of a run: every change of its state goes through here, is saved, and is announced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from conductor.core.enums import TaskStatus
from conductor.core.exceptions import ConductorError, StateError
from conductor.core.fields import utc_now
from conductor.core.models import TaskResult
from conductor.core.wording import error_text
from conductor.orchestration.workflow_events import WorkflowEvent, unannounced
from conductor.orchestration.workflow_progress import ended, keep_definition, keep_progress, of_round

if TYPE_CHECKING:
    from datetime import datetime

    from conductor.core.enums import WorkflowPhase
    from conductor.core.models import TaskDefinition
    from conductor.core.state import WorkflowState
    from conductor.orchestration.state_manager import StateManager
    from conductor.orchestration.workflow_events import Announcer
    from conductor.orchestration.workflow_lease import WorkflowLease
    from conductor.orchestration.workflow_plan import Plan
    from conductor.orchestration.workflow_progress import Progress

UNASSIGNED = "unassigned"
"""The agent id of results of tasks that no agent ran."""


class Ledger:
    """The state of a run with its plan and its progress; saves only while the lease is held."""

    def __init__(
        self,
        plan: Plan,
        state: WorkflowState,
        progress: Progress,
        lease: WorkflowLease,
        state_manager: StateManager,
        announcer: Announcer,
    ) -> None:
        self.plan = plan
        self.state = state
        self.progress = progress
        self.lease = lease
        self._state_manager = state_manager
        self._announcer = announcer
        # A save of the whole that meets a newer version is sent again, and would undo what came in between.
        self._saving = asyncio.Lock()
        keep_definition(state, plan.definition)
        progress.engine = lease.owner

    async def enter(self, *events: WorkflowEvent) -> None:
        """Save the whole state, and publish events that are true from then on, of which none gets lost.

        WorkflowError, code WORKFLOW_LEASE_LOST.
        """
        self.progress.unannounced = [event.kept() for event in events]
        async with self._saving:
            await self._save()
        for event in events:
            await self._announcer.announce(event)

    async def repeat(self) -> None:
        """Publish again what the engine that died may not have come to."""
        for event in unannounced(self.state):
            await self._announcer.announce(event)
        if self.progress.phase_started_at is None or self.progress.phase is None:
            return
        for task in self.plan.tasks_of(self.progress.phase):
            if ended(self.state, task):
                result = self.state.task_results[task.task_id]
                await self._announcer.announce(self._end_of(task, result, repeated=True))

    async def record(self, task: TaskDefinition, result: TaskResult, error: Exception | None = None) -> None:
        """File the end of a task, at the same cost however many there were, and announce it."""
        state = self.state
        result = of_round(result, task, state.feedback_count)
        async with self._saving:
            state.task_results[task.task_id] = result
            if error is None:
                await self._save_result(result)
            else:
                state.error_log.append(log_entry(error, state.current_phase, task))
                await self._save()
        await self._announcer.announce(self._end_of(task, result))

    async def begin(self, task: TaskDefinition) -> None:
        """Announce the start of a task."""
        await self._announcer.announce(self.event("task_started", status=TaskStatus.IN_PROGRESS, task=task))

    def event(self, name: str, *, status: TaskStatus | None = None, **facts: Any) -> WorkflowEvent:
        """Describe what happens."""
        state = self.state
        known: dict[str, Any] = {"phase": state.current_phase, "feedback_round": state.feedback_count}
        return WorkflowEvent(name, state.workflow_id, status or state.status, **(known | facts))

    def _end_of(self, task: TaskDefinition, result: TaskResult, *, repeated: bool = False) -> WorkflowEvent:
        facts = {"task": task, "result": result, "message": result.error_message, "repeated": repeated}
        return self.event("task_ended", status=result.status, **facts)

    def log(self, error: BaseException) -> None:
        """Note an error that is about no task; it is saved with the next save."""
        self.state.error_log.append(log_entry(error, self.state.current_phase))

    async def _save(self) -> None:
        await self.lease.hold()
        keep_progress(self.state, self.progress)
        await self._state_manager.save_workflow_state(self.state)

    async def _save_result(self, result: TaskResult) -> None:
        await self.lease.hold()
        state, manager = self.state, self._state_manager
        agent_state = await manager.get_agent_state(result.agent_id)
        if agent_state is not None:
            state.agent_states[result.agent_id] = agent_state
        try:
            await manager.save_workflow_task_result(state.workflow_id, result)
            if agent_state is not None:
                await manager.save_workflow_agent_state(state.workflow_id, agent_state)
        except StateError as error:
            # Somebody deleted the workflow, or it expired, while it runs.
            if error.error_code != "STATE_NOT_FOUND":
                raise
            await self._save()


def not_run(task: TaskDefinition, reason: str) -> TaskResult:
    """Make the SKIPPED result of a task that no agent ran to its end."""
    return TaskResult(
        task_id=task.task_id, agent_id=UNASSIGNED, status=TaskStatus.SKIPPED, error_message=reason
    )


def failed(task: TaskDefinition, error: Exception, started_at: datetime) -> TaskResult:
    """Make the FAILED result of a task that could not be done."""
    completed_at = utc_now()
    return TaskResult(
        task_id=task.task_id,
        agent_id=getattr(error, "agent_id", None) or UNASSIGNED,
        status=TaskStatus.FAILED,
        error_message=error_text(error),
        started_at=started_at,
        completed_at=completed_at,
        duration_seconds=(completed_at - started_at).total_seconds(),
    )


def log_entry(
    error: BaseException, phase: WorkflowPhase, task: TaskDefinition | None = None
) -> dict[str, Any]:
    """Make the entry of an error for a state's error_log."""
    plain = error if isinstance(error, ConductorError) else ConductorError(error_text(error))
    entry: dict[str, Any] = {
        **plain.to_dict(),
        "error_type": type(error).__name__,
        "phase": phase.value,
        "task_id": task.task_id if task else None,
        "task_name": task.name if task else None,
        "timestamp": utc_now().isoformat(),
    }
    # What has no JSON form must not keep the state from being saved.
    entry["details"] = to_jsonable_python(entry["details"], fallback=repr)
    return entry
