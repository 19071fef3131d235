"""One run of a workflow: its phases, what follows from each, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from conductor.core.enums import TaskStatus, WorkflowPhase
from conductor.core.exceptions import ConductorError, WorkflowError
from conductor.core.fields import utc_now
from conductor.core.tracing import span_of
from conductor.core.wording import error_text
from conductor.orchestration.workflow_feedback import begin_round, grave_feedback, loops_used_up
from conductor.orchestration.workflow_ledger import not_run
from conductor.orchestration.workflow_phase import PhaseTasks, as_dispatched
from conductor.orchestration.workflow_progress import OUTCOME, ended

if TYPE_CHECKING:
    from datetime import datetime

    from conductor.core.messages import FeedbackPayload
    from conductor.core.models import TaskDefinition
    from conductor.orchestration.policy_engine import PolicyEngine
    from conductor.orchestration.workflow_dispatch import Dispatch
    from conductor.orchestration.workflow_events import WorkflowEvent
    from conductor.orchestration.workflow_ledger import Ledger

logger = logging.getLogger(__name__)


class Run:
    """Takes a run from the step its ledger is at to its end."""

    def __init__(
        self,
        ledger: Ledger,
        dispatch: Dispatch,
        policy_engine: PolicyEngine | None,
        max_feedback_loops: int,
        dispatched_since: datetime | None = None,
    ) -> None:
        self.ledger = ledger
        self._dispatch = dispatch
        self._policy_engine = policy_engine
        kept = ledger.progress.max_feedback_loops
        self._max_feedback_loops = max_feedback_loops if kept is None else kept
        self._dispatched_since = dispatched_since

    async def go(self) -> None:
        """Run what is left of it; the state says COMPLETED or FAILED then."""
        progress = self.ledger.progress
        while progress.phase is not None:
            await self._run_phase(progress.phase)
        await self._end(TaskStatus.FAILED if progress.failed else TaskStatus.COMPLETED)

    async def run_one_phase(self, phase: WorkflowPhase, *, complete: bool) -> None:
        """Run one phase, and end the run only if it is to be complete."""
        await self._run_phase(phase)
        if self.ledger.progress.failed:
            await self._end(TaskStatus.FAILED)
        elif complete:
            await self._end(TaskStatus.COMPLETED)

    async def interruption(self) -> WorkflowError | None:
        """Tell why the run must end now, if it must: it is to be cancelled, or its time is over."""
        ledger, workflow_id = self.ledger, self.ledger.state.workflow_id
        if await ledger.lease.is_to_be_cancelled():
            return self._cancellation()
        left = self.seconds_left
        if left is not None and left <= 0:
            limit = ledger.plan.definition.timeout_seconds
            return WorkflowError(
                f"Workflow {workflow_id} took longer than its {limit:g} s.",
                workflow_id,
                "WORKFLOW_TIMEOUT",
                {"timeout_seconds": limit},
            )
        return None

    def _cancellation(self) -> WorkflowError:
        workflow_id = self.ledger.state.workflow_id
        return WorkflowError(f"Workflow {workflow_id} was cancelled.", workflow_id, "WORKFLOW_CANCELLED")

    @property
    def seconds_left(self) -> float | None:
        """Give how many seconds the run may still take, None if it has all the time."""
        limit = self.ledger.plan.definition.timeout_seconds
        if limit is None or self.ledger.progress.last_phase is not None:
            return None
        return limit - (utc_now() - self.ledger.state.started_at).total_seconds()

    async def interrupt(self, reason: WorkflowError) -> None:
        """End a run that nothing runs any more: cancel what agents do for it, keep what was done."""
        ledger = self.ledger
        await self.revoke(f"{reason.message} This task had not ended.")
        ledger.log(reason)
        if reason.error_code == "WORKFLOW_CANCELLED":
            ledger.state.metadata[OUTCOME] = "cancelled"
        await self._end(TaskStatus.FAILED, reason.message)

    async def break_off(self, error: BaseException) -> None:
        """End a run that was cancelled from within its process, or that broke."""
        try:
            if isinstance(error, asyncio.CancelledError):
                await self.interrupt(self._cancellation())
                return
            await self.revoke()
            self.ledger.log(error)
            await self._end(TaskStatus.FAILED, error_text(error), skip=False)
        except ConductorError:
            logger.exception("workflow %s: its end was not filed", self.ledger.state.workflow_id)

    async def revoke(self, remark: str | None = None) -> None:
        """Cancel what agents do for the current phase; file what had ended, and with a remark the rest."""
        ledger = self.ledger
        phase = ledger.progress.phase
        tasks = ledger.plan.tasks_of(phase) if phase else []
        left = [task for task in tasks if not ended(ledger.state, task)]
        dispatched = [as_dispatched(task, ledger) for task in left]
        found = await asyncio.gather(
            *(self._dispatch.revoke(task) for task in dispatched), return_exceptions=True
        )
        for task, result in zip(left, found, strict=True):
            if isinstance(result, BaseException):
                logger.warning("task %s could not be cancelled: %s", task.task_id, result)
            elif result is not None:
                await ledger.record(task, result)
            if remark and not ended(ledger.state, task):
                await ledger.record(task, not_run(task, remark))

    async def denials(self) -> list[tuple[str, str]]:
        """Ask the policies whether the run may go on; give those that deny and their reasons."""
        if self._policy_engine is None:
            return []
        state = self.ledger.state
        tasks = self.ledger.plan.definition.tasks
        of_this_round = {
            task.task_id: state.task_results[task.task_id] for task in tasks if ended(state, task)
        }
        shown = state.model_copy(update={"task_results": of_this_round})
        results = await self._policy_engine.evaluate_all({"workflow_state": shown})
        return [(result.policy_name, result.reason) for result in results if not result.allowed]

    async def _run_phase(self, phase: WorkflowPhase) -> None:
        ledger = self.ledger
        state, progress, tasks = ledger.state, ledger.progress, self.ledger.plan.tasks_of(phase)
        progress.phase = state.current_phase = phase
        if progress.phase_started_at is None:
            progress.phase_started_at = utc_now()
            await ledger.enter(ledger.event("phase_started"))
        run = PhaseTasks(ledger, self._dispatch, tasks, self._dispatched_since)
        attributes = {"conductor.workflow.id": state.workflow_id, "conductor.phase": phase.value}
        with span_of(f"phase {phase.value}", "internal", attributes):
            await run.run(as_graph=ledger.plan.is_graph(phase))
        closing = self._close(phase, tasks)
        turn = await self._decide(phase, tasks)
        await ledger.enter(*filter(None, (closing, turn)))

    def _close(
        self, phase: WorkflowPhase, tasks: list[TaskDefinition], result: str | None = None
    ) -> WorkflowEvent:
        """Enter the end of a phase into the history, and give the event of it."""
        ledger = self.ledger
        entry = self._history(phase, ledger.progress.phase_started_at or utc_now(), tasks)
        entry["result"] = result or entry["result"]
        ledger.state.phase_history.append(entry)
        ledger.progress.phase_started_at = None
        return ledger.event("phase_ended", phase=phase, message=entry["result"])

    async def _decide(self, phase: WorkflowPhase, tasks: list[TaskDefinition]) -> WorkflowEvent | None:
        """Find what comes after a phase; nothing of it is true before it is saved."""
        ledger = self.ledger
        progress, state = ledger.progress, ledger.state
        progress.phase = self._phase_after(phase)
        stopped_by = self._not_completed(tasks) if progress.stop_on_failure else None
        if stopped_by is not None:
            problem = f"The workflow stops at task {stopped_by.name!r}, which is not completed."
            ledger.log(WorkflowError(problem, state.workflow_id, "STOPPED_ON_FAILURE"))
            self._stop()
            return None
        if progress.last_phase is None and (feedback := grave_feedback(ledger, tasks)) is not None:
            return self._feed_back(phase, feedback)
        if progress.phase is None or not tasks:
            return None
        denials = await self.denials()
        if not denials:
            return None
        said = "; ".join(f"policy {name!r}: {reason}" for name, reason in denials)
        error = WorkflowError(
            f"The policies do not let the workflow go on after phase {phase}: {said}",
            state.workflow_id,
            "PHASE_GATE_CLOSED",
            {"policy_name": denials[0][0], "reason": denials[0][1], "denials": dict(denials)},
        )
        ledger.log(error)
        self._stop()
        return ledger.event("gate_denied", phase=phase, message=error.message)

    def _not_completed(self, tasks: list[TaskDefinition]) -> TaskDefinition | None:
        state = self.ledger.state
        endings = ((task, state.task_results[task.task_id].status) for task in tasks if ended(state, task))
        return next((task for task, status in endings if status is not TaskStatus.COMPLETED), None)

    def _feed_back(self, phase: WorkflowPhase, feedback: FeedbackPayload) -> WorkflowEvent | None:
        ledger = self.ledger
        phases, state = ledger.plan.definition.phases, ledger.state
        if WorkflowPhase.DEVELOPMENT not in phases[: phases.index(phase)]:
            logger.warning(
                "workflow %s: it has no development before %s to be sent back to", state.workflow_id, phase
            )
            return None
        if state.feedback_count >= self._max_feedback_loops:
            error = loops_used_up(state.workflow_id, state.feedback_count, self._max_feedback_loops)
            ledger.log(error)
            self._stop()
            return ledger.event("feedback", phase=phase, message=error.message, feedback=feedback)
        begin_round(ledger, feedback)
        message = f"round {state.feedback_count}: {'; '.join(feedback.findings)}"
        return ledger.event("feedback", phase=phase, message=message, feedback=feedback)

    def _stop(self) -> None:
        self.ledger.progress.phase = None
        self.ledger.progress.failed = True

    def _phase_after(self, phase: WorkflowPhase) -> WorkflowPhase | None:
        phases = self.ledger.plan.definition.phases
        if phase is self.ledger.progress.last_phase or phase not in phases:
            return None
        following = phases[phases.index(phase) + 1 :]
        return following[0] if following else None

    def _history(
        self, phase: WorkflowPhase, started_at: datetime, tasks: list[TaskDefinition]
    ) -> dict[str, Any]:
        state = self.ledger.state
        statuses = [state.task_results[task.task_id].status for task in tasks if ended(state, task)]
        failed_count = statuses.count(TaskStatus.FAILED)
        idle = all(status is TaskStatus.SKIPPED for status in statuses)
        entry: dict[str, Any] = {
            "phase": phase.value,
            "started_at": started_at.isoformat(),
            "completed_at": utc_now().isoformat(),
            "result": "failed" if failed_count else "skipped" if idle else "completed",
            "task_count": len(tasks),
            "completed_count": statuses.count(TaskStatus.COMPLETED),
            "failed_count": failed_count,
        }
        return entry | ({"feedback_round": state.feedback_count} if state.feedback_count else {})

    async def _end(self, status: TaskStatus, message: str | None = None, *, skip: bool = True) -> None:
        ledger = self.ledger
        if skip and ledger.progress.last_phase is None:
            self._skip_the_rest()
        events, phase = [], ledger.progress.phase
        if phase is not None and ledger.progress.phase_started_at is not None:
            result = ledger.state.metadata.get(OUTCOME, "failed")
            events.append(self._close(phase, ledger.plan.tasks_of(phase), result))
        ledger.progress.phase = None
        ledger.state.status = status
        ledger.state.completed_at = utc_now()
        await ledger.enter(*events, ledger.event("workflow_ended", message=message))
        await ledger.lease.forget_wish()

    def _skip_the_rest(self) -> None:
        plan, results = self.ledger.plan, self.ledger.state.task_results
        for task in plan.definition.tasks:
            if task.task_id not in results:
                reason = "The run ended before this task."
                if plan.phase_of(task) is None:
                    reason = f"None of the workflow's phases has {task.assigned_to or 'unassigned'} tasks."
                results[task.task_id] = not_run(task, reason)
