"""Running a workflow: phase after phase, task after task."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import to_jsonable_python

from conductor.core.enums import AgentType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import ConductorError, ConfigurationError, StateError, WorkflowError
from conductor.core.fields import utc_now
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState

if TYPE_CHECKING:
    from datetime import datetime

    from conductor.core.messages import FeedbackPayload
    from conductor.orchestration.policy_engine import PolicyEngine
    from conductor.orchestration.state_manager import StateManager

logger = logging.getLogger(__name__)

PHASE_AGENT_TYPES: dict[WorkflowPhase, list[AgentType]] = {
    WorkflowPhase.DEVELOPMENT: [AgentType.CODING, AgentType.REVIEW, AgentType.TEST_DATA, AgentType.TEST],
    WorkflowPhase.DEVOPS: [AgentType.DEVOPS, AgentType.DEPLOYING],
    WorkflowPhase.MONITORING: [AgentType.MONITOR],
}

UNASSIGNED = "unassigned"
"""The agent id of results of tasks that no agent ran."""


class TaskDispatcher(Protocol):
    """Whatever gets a task done by an agent: AgentCoordinator in this process, or one over Celery nodes."""

    async def dispatch_task(self, task: TaskDefinition) -> TaskResult:
        """Do `task` and give its result; what is raised is recorded as a failed task."""


class WorkflowEngine:
    """Runs workflows through a dispatcher, saving the state after every task and every phase.

    A failed task is recorded and the run goes on, unless `stop_on_failure`. One engine may run several
    workflows at the same time, on one event loop.
    """

    def __init__(
        self,
        coordinator: TaskDispatcher,
        state_manager: StateManager,
        policy_engine: PolicyEngine | None = None,
        max_feedback_loops: int = 3,
        *,
        stop_on_failure: bool = False,
    ) -> None:
        if max_feedback_loops < 0:
            raise ConfigurationError(f"max_feedback_loops must be 0 or more, not {max_feedback_loops}.")
        self.coordinator = coordinator
        self.state_manager = state_manager
        self.policy_engine = policy_engine
        self.max_feedback_loops = max_feedback_loops
        self.stop_on_failure = stop_on_failure

    async def run_workflow(self, definition: WorkflowDefinition) -> WorkflowState:
        """Run all phases and give the final state, COMPLETED also where tasks failed.

        FAILED is a run that a phase gate denied to go on, that `stop_on_failure` stopped, or that was
        cancelled. Tasks that were not run, or belong to none of the phases, are recorded as SKIPPED.
        """
        state = WorkflowState(workflow_id=definition.workflow_id, status=TaskStatus.IN_PROGRESS)
        if definition.phases:
            state.current_phase = definition.phases[0]
        await self._save(state)
        async with _Ending(self, state):
            for phase in definition.phases:
                may_go_on = await self._run_phase(state, phase, _tasks_of(definition, phase))
                if not may_go_on or not await self._gate_open(state, phase, definition):
                    state.status = TaskStatus.FAILED
                    break
            _skip_the_rest(state, definition)
        return state

    async def check_phase_gate(self, state: WorkflowState) -> bool:
        """Tell whether the policies let the run go on to its next phase; without policies: True."""
        return self.policy_engine is None or await self.policy_engine.check({"workflow_state": state})

    async def trigger_feedback_loop(
        self, state: WorkflowState, definition: WorkflowDefinition, feedback: FeedbackPayload
    ) -> WorkflowState:
        """Run DEVELOPMENT again, with `feedback` in each task's input_data, and give `state`, changed.

        The tasks run under ids of their own ("<task_id>.feedback-<n>"), since a result is kept by its task's
        id; in the state their results take the place of the earlier ones. WorkflowError with code
        MAX_FEEDBACK_LOOPS past the limit; nothing is changed then.
        """
        if state.feedback_count >= self.max_feedback_loops:
            raise WorkflowError(
                f"Workflow {state.workflow_id} had its {self.max_feedback_loops} feedback loops.",
                state.workflow_id,
                "MAX_FEEDBACK_LOOPS",
                {"feedback_count": state.feedback_count, "max_feedback_loops": self.max_feedback_loops},
            )
        was_complete = state.is_complete
        state.feedback_count += 1
        state.status, state.completed_at = TaskStatus.IN_PROGRESS, None
        phase = WorkflowPhase.DEVELOPMENT
        tasks = _tasks_of(definition, phase)
        async with _Ending(self, state, complete=was_complete):
            if not await self._run_phase(state, phase, tasks, feedback):
                state.status = TaskStatus.FAILED
        return state

    async def _run_phase(
        self,
        state: WorkflowState,
        phase: WorkflowPhase,
        tasks: list[TaskDefinition],
        feedback: FeedbackPayload | None = None,
    ) -> bool:
        """Run the tasks one after the other; False if the run must stop."""
        state.current_phase = phase
        started_at, statuses = utc_now(), list[TaskStatus]()
        await self._save(state)
        for task in tasks:
            statuses.append(await self._run_task(state, phase, task, feedback))
            if self.stop_on_failure and statuses[-1] is not TaskStatus.COMPLETED:
                break
        stopped = self.stop_on_failure and any(status is not TaskStatus.COMPLETED for status in statuses)
        state.phase_history.append(_history(phase, started_at, len(tasks), statuses))
        await self._save(state)
        return not stopped

    async def _run_task(
        self,
        state: WorkflowState,
        phase: WorkflowPhase,
        task: TaskDefinition,
        feedback: FeedbackPayload | None,
    ) -> TaskStatus:
        sent = task if feedback is None else _with_feedback(task, feedback, state.feedback_count)
        started_at = utc_now()
        try:
            result = await self.coordinator.dispatch_task(sent)
        except Exception as error:
            logger.exception("workflow %s: task %s could not be done", state.workflow_id, task.task_id)
            state.error_log.append(_log_entry(error, phase, task))
            result = _failed(task, error, started_at)
            state.task_results[task.task_id] = result
            await self._save(state)
            return result.status
        result = result.model_copy(update={"task_id": task.task_id})
        state.task_results[task.task_id] = result
        await self._save_result(state, result)
        return result.status

    async def _gate_open(
        self, state: WorkflowState, phase: WorkflowPhase, definition: WorkflowDefinition
    ) -> bool:
        """Ask the gate after a phase that did something and has a successor."""
        if phase is definition.phases[-1] or state.phase_history[-1]["task_count"] == 0:
            return True
        if await self.check_phase_gate(state):
            return True
        error = WorkflowError(
            f"The policies do not let the workflow go on after phase {phase}.",
            state.workflow_id,
            "PHASE_GATE_CLOSED",
        )
        state.error_log.append(_log_entry(error, phase))
        return False

    async def _save(self, state: WorkflowState) -> None:
        await self.state_manager.save_workflow_state(state)

    async def _save_result(self, state: WorkflowState, result: TaskResult) -> None:
        """Save what a task adds, which costs the same however many results there are already."""
        agent_state = await self.state_manager.get_agent_state(result.agent_id)
        if agent_state is not None:
            state.agent_states[result.agent_id] = agent_state
        try:
            await self.state_manager.save_workflow_task_result(state.workflow_id, result)
            if agent_state is not None:
                await self.state_manager.save_workflow_agent_state(state.workflow_id, agent_state)
        except StateError as error:
            # Somebody deleted the workflow, or it expired, while it runs.
            if error.error_code != "STATE_NOT_FOUND":
                raise
            await self._save(state)


class _Ending:
    """Ends a run, also one that is cancelled or breaks, and saves how it ended."""

    def __init__(self, engine: WorkflowEngine, state: WorkflowState, *, complete: bool = True) -> None:
        self._engine = engine
        self._state = state
        self._complete = complete

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        state = self._state
        if error is not None:
            state.status = TaskStatus.FAILED
            state.error_log.append(_log_entry(error, state.current_phase))
        elif self._complete and state.status is TaskStatus.IN_PROGRESS:
            state.status = TaskStatus.COMPLETED
        if state.is_complete:
            state.completed_at = utc_now()
        await asyncio.shield(self._engine.state_manager.save_workflow_state(state))


def _tasks_of(definition: WorkflowDefinition, phase: WorkflowPhase) -> list[TaskDefinition]:
    """Give the phase's tasks; one without an agent type is in the first, where dispatching refuses it."""
    types: set[AgentType | None] = set(PHASE_AGENT_TYPES[phase])
    if definition.phases and phase is definition.phases[0]:
        types.add(None)
    return [task for task in definition.tasks if task.assigned_to in types]


def _skip_the_rest(state: WorkflowState, definition: WorkflowDefinition) -> None:
    reachable = {task.task_id for phase in definition.phases for task in _tasks_of(definition, phase)}
    for task in definition.tasks:
        if task.task_id in state.task_results:
            continue
        reason = "The run ended before this task."
        if task.task_id not in reachable:
            reason = f"None of the workflow's phases has {task.assigned_to or 'unassigned'} tasks."
        state.task_results[task.task_id] = TaskResult(
            task_id=task.task_id, agent_id=UNASSIGNED, status=TaskStatus.SKIPPED, error_message=reason
        )


def _with_feedback(task: TaskDefinition, feedback: FeedbackPayload, count: int) -> TaskDefinition:
    input_data = {**task.input_data, "feedback": feedback.model_dump(mode="json")}
    return task.model_copy(update={"task_id": f"{task.task_id}.feedback-{count}", "input_data": input_data})


def _failed(task: TaskDefinition, error: Exception, started_at: datetime) -> TaskResult:
    completed_at = utc_now()
    return TaskResult(
        task_id=task.task_id,
        agent_id=getattr(error, "agent_id", None) or UNASSIGNED,
        status=TaskStatus.FAILED,
        error_message=str(error) or type(error).__name__,
        started_at=started_at,
        completed_at=completed_at,
        duration_seconds=(completed_at - started_at).total_seconds(),
    )


def _history(
    phase: WorkflowPhase, started_at: datetime, task_count: int, statuses: list[TaskStatus]
) -> dict[str, Any]:
    failed_count = statuses.count(TaskStatus.FAILED)
    outcome = "skipped" if not task_count else "failed" if failed_count else "completed"
    return {
        "phase": phase.value,
        "started_at": started_at.isoformat(),
        "completed_at": utc_now().isoformat(),
        "result": outcome,
        "task_count": task_count,
        "completed_count": statuses.count(TaskStatus.COMPLETED),
        "failed_count": failed_count,
    }


def _log_entry(
    error: BaseException, phase: WorkflowPhase, task: TaskDefinition | None = None
) -> dict[str, Any]:
    plain = error if isinstance(error, ConductorError) else ConductorError(str(error))
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
