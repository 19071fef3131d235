"""Running workflows: the engine, which is the way to run, resume and cancel them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from conductor.core.enums import TaskStatus, WorkflowPhase
from conductor.core.exceptions import ConfigurationError, StateError, WorkflowError
from conductor.core.log_ids import bound_ids
from conductor.core.state import WorkflowState
from conductor.core.tracing import fail_span, span_of
from conductor.orchestration.message_bus import MessageBus
from conductor.orchestration.policy_engine import PolicyEngine
from conductor.orchestration.workflow_dispatch import Dispatch, TaskDispatcher
from conductor.orchestration.workflow_events import Announcer, WorkflowEvent, unannounced
from conductor.orchestration.workflow_feedback import begin_round, loops_used_up
from conductor.orchestration.workflow_lease import PAUSE, WorkflowLease
from conductor.orchestration.workflow_ledger import UNASSIGNED, Ledger
from conductor.orchestration.workflow_plan import PHASE_AGENT_TYPES, Plan
from conductor.orchestration.workflow_progress import OUTCOME, Progress, is_same, restore
from conductor.orchestration.workflow_run import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Any

    from conductor.core.messages import FeedbackPayload
    from conductor.core.models import WorkflowDefinition
    from conductor.orchestration.state_manager import StateManager
    from conductor.orchestration.workflow_events import OnEvent

__all__ = ["PHASE_AGENT_TYPES", "UNASSIGNED", "TaskDispatcher", "WorkflowEngine", "WorkflowEvent"]

logger = logging.getLogger(__name__)

#: Seconds between two looks whether the run is to be cancelled, at most.
LOOK_INTERVAL = 1.0
#: Seconds that `cancel_workflow` waits for the engine that runs the workflow.
CANCEL_PATIENCE = 60.0


class WorkflowEngine:
    """Runs workflows through a dispatcher, saving the state after every task and every phase.

    A failed task is recorded and the run goes on, unless `stop_on_failure`. One engine may run several
    workflows at the same time, on one event loop; of all engines on one store one at a time runs a workflow.

    Args:
        policy_engine: is asked after each phase; by default that of the coordinator.
        message_bus: where runs are announced; by default the `message_bus` or `bus` of the coordinator.
        on_event: is called with every event of every run, on the event loop; it must not block or raise.
        lease_seconds: how long after its engine died a workflow cannot be resumed.
    """

    def __init__(
        self,
        coordinator: TaskDispatcher,
        state_manager: StateManager,
        policy_engine: PolicyEngine | None = None,
        max_feedback_loops: int = 3,
        *,
        stop_on_failure: bool = False,
        message_bus: MessageBus | None = None,
        on_event: OnEvent | None = None,
        lease_seconds: float = 8.0,
    ) -> None:
        if max_feedback_loops < 0:
            raise ConfigurationError(f"max_feedback_loops must be 0 or more, not {max_feedback_loops}.")
        self.coordinator = coordinator
        self.state_manager = state_manager
        own = getattr(coordinator, "policy_engine", None)
        self.policy_engine = own if policy_engine is None and isinstance(own, PolicyEngine) else policy_engine
        self.max_feedback_loops = max_feedback_loops
        self.stop_on_failure = stop_on_failure
        self._message_bus = message_bus
        self._on_event = on_event
        self._lease_seconds = lease_seconds

    async def run_workflow(self, definition: WorkflowDefinition) -> WorkflowState:
        """Run all phases and give the final state, COMPLETED also where tasks failed.

        FAILED is a run that a phase gate denied to go on, that `stop_on_failure` stopped, whose time or
        feedback loops were used up, or that was cancelled. Tasks that were not run, or belong to none of the
        phases, are recorded as SKIPPED. A run of this id that has not ended goes on where it was, once the
        lease of its dead engine has run out; one that has ended is returned as it is.

        Raises WorkflowError: INVALID_WORKFLOW before anything runs, WORKFLOW_RUNNING (another engine runs it
        and renews its lease), WORKFLOW_CHANGED (the id is that of another definition), WORKFLOW_LEASE_LOST;
        and StateError when the store goes away: the run can then be resumed.
        """
        plan = Plan(definition)
        lease = self._lease(definition.workflow_id)
        await lease.take(self._patience)
        async with _held(lease):
            state = await self.state_manager.get_workflow_state(definition.workflow_id)
            if state is None or not state.metadata.keys() >= {"definition", "progress"}:
                return await self._start(plan, lease)
            if not is_same(restore(state)[0], definition):
                raise WorkflowError(
                    f"There is a run {state.workflow_id} of another definition; use another workflow_id.",
                    state.workflow_id,
                    "WORKFLOW_CHANGED",
                )
            return await self._go_on(state, lease)

    async def resume_workflow(self, workflow_id: str) -> WorkflowState:
        """Go on with a run whose engine died, and give the final state; one that has ended as it is.

        Raises what `run_workflow` does, and WorkflowError, code WORKFLOW_NOT_FOUND or WORKFLOW_NOT_RESUMABLE.
        """
        state = await self._saved(workflow_id)
        if state.is_complete:
            return await self._say_again(state)
        restore(state)
        lease = self._lease(workflow_id)
        await lease.take(self._patience)
        async with _held(lease):
            return await self._go_on(await self._saved(workflow_id), lease)

    async def cancel_workflow(self, workflow_id: str) -> WorkflowState:
        """End a run, whichever process runs it, and give the final state; one that has ended as it is.

        What agents do for it is cancelled, what waits is SKIPPED, what was done is kept: the status is FAILED
        and `metadata["outcome"]` "cancelled". Raises WorkflowError, code WORKFLOW_NOT_FOUND,
        WORKFLOW_NOT_RESUMABLE, or WORKFLOW_RUNNING when its engine did not end it within a minute.
        """
        state = await self._saved(workflow_id)
        if state.is_complete:
            return state
        restore(state)
        lease = self._lease(workflow_id)
        await lease.wish_to_cancel()
        await self._announcer(workflow_id).command("cancel")
        deadline = time.monotonic() + CANCEL_PATIENCE
        while time.monotonic() < deadline:
            if await lease.try_to_take():
                async with _held(lease):
                    return await self._go_on(await self._saved(workflow_id), lease)
            await asyncio.sleep(PAUSE)
            state = await self._saved(workflow_id)
            if state.is_complete:
                return state
        raise WorkflowError(
            f"Workflow {workflow_id} was asked to end and has not within {CANCEL_PATIENCE:g} s.",
            workflow_id,
            "WORKFLOW_RUNNING",
        )

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
            raise loops_used_up(state.workflow_id, state.feedback_count, self.max_feedback_loops)
        plan, lease = Plan(definition), self._lease(state.workflow_id)
        await lease.take(self._patience)
        async with _held(lease):
            was_complete = state.is_complete
            state.status, state.completed_at = TaskStatus.IN_PROGRESS, None
            state.metadata.pop(OUTCOME, None)
            progress = self._progress(last_phase=WorkflowPhase.DEVELOPMENT)
            run = self._run(plan, state, progress, lease)
            begin_round(run.ledger, feedback)
            work = run.run_one_phase(WorkflowPhase.DEVELOPMENT, complete=was_complete)
            return await self._supervise(run, work)

    async def _start(self, plan: Plan, lease: WorkflowLease) -> WorkflowState:
        definition = plan.definition
        state = WorkflowState(workflow_id=definition.workflow_id, status=TaskStatus.IN_PROGRESS)
        phase = definition.phases[0] if definition.phases else None
        state.current_phase = phase or state.current_phase
        run = self._run(plan, state, self._progress(phase=phase), lease)
        await run.ledger.enter(run.ledger.event("workflow_started"))
        return await self._supervise(run, run.go())

    async def _go_on(self, state: WorkflowState, lease: WorkflowLease) -> WorkflowState:
        if state.is_complete:
            return await self._say_again(state)
        definition, progress = restore(state)
        run = self._run(Plan(definition), state, progress, lease, resumed=True)
        await run.ledger.repeat()
        await run.ledger.enter(run.ledger.event("workflow_resumed"))
        return await self._supervise(run, run.go())

    async def _say_again(self, state: WorkflowState) -> WorkflowState:
        """Publish the end of a run once more: its engine may have died before it came to."""
        for event in unannounced(state):
            await self._announcer(state.workflow_id).announce(event)
        return state

    def _progress(self, **step: WorkflowPhase | None) -> Progress:
        return Progress(
            **step, stop_on_failure=self.stop_on_failure, max_feedback_loops=self.max_feedback_loops
        )

    async def _supervise(self, run: Run, work: Coroutine[Any, Any, None]) -> WorkflowState:
        """Do the work until it ends, or the run has to be ended; give the final state."""
        workflow_id, definition = run.ledger.state.workflow_id, run.ledger.plan.definition
        attributes = {"conductor.workflow.id": workflow_id, "conductor.workflow.name": definition.name[:100]}
        span_of_run = span_of(f"workflow {definition.name}", "internal", attributes)
        with bound_ids({"workflow_id": workflow_id}), span_of_run as span:
            reason = await run.interruption()
            if reason is None:
                reason = await self._work(run, work)
            else:
                work.close()
            if reason is not None:
                await run.interrupt(reason)
            if run.ledger.state.status is TaskStatus.FAILED:
                fail_span(span, "WORKFLOW_FAILED" if reason is None else reason.error_code)
        return run.ledger.state

    async def _work(self, run: Run, work: Coroutine[Any, Any, None]) -> WorkflowError | None:
        working, watching = asyncio.create_task(work), asyncio.create_task(self._watch(run))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return watching.result()
            working.result()
        except (StateError, WorkflowError):
            # Nothing can be filed, or not by this engine: whoever resumes the run files its end.
            raise
        except BaseException as error:
            await _cancel(working)
            await asyncio.shield(run.break_off(error))
            raise
        finally:
            await _cancel(working)
            await _cancel(watching)
        return None

    async def _watch(self, run: Run) -> WorkflowError:
        """Keep the lease, and give the reason when the run has to be ended."""
        interval = min(LOOK_INTERVAL, self._lease_seconds / 4)
        while True:
            left = run.seconds_left
            await asyncio.sleep(interval if left is None else max(min(interval, left), 0))
            await run.ledger.lease.renew()
            try:
                reason = await run.interruption()
            except StateError as error:
                logger.warning("workflow %s: the store is away: %s", run.ledger.state.workflow_id, error)
                continue
            if reason is not None:
                return reason

    def _run(
        self,
        plan: Plan,
        state: WorkflowState,
        progress: Progress,
        lease: WorkflowLease,
        *,
        resumed: bool = False,
    ) -> Run:
        announcer = self._announcer(state.workflow_id)
        return Run(
            Ledger(plan, state, progress, lease, self.state_manager, announcer),
            Dispatch(self.coordinator, self.state_manager),
            self.policy_engine,
            self.max_feedback_loops,
            state.started_at if resumed else None,
        )

    @property
    def _patience(self) -> float:
        return self._lease_seconds * 1.25

    def _lease(self, workflow_id: str) -> WorkflowLease:
        return WorkflowLease(self.state_manager, workflow_id, self._lease_seconds)

    def _announcer(self, workflow_id: str) -> Announcer:
        return Announcer(workflow_id, self._find_bus, self._on_event, self.state_manager)

    def _find_bus(self) -> MessageBus | None:
        if self._message_bus is not None:
            return self._message_bus
        bus = getattr(self.coordinator, "message_bus", None) or getattr(self.coordinator, "bus", None)
        return bus if isinstance(bus, MessageBus) else None

    async def _saved(self, workflow_id: str) -> WorkflowState:
        state = await self.state_manager.get_workflow_state(workflow_id)
        if state is None:
            raise WorkflowError(
                f"There is no workflow {workflow_id!r} in this store.", workflow_id, "WORKFLOW_NOT_FOUND"
            )
        return state


@contextlib.asynccontextmanager
async def _held(lease: WorkflowLease) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.shield(lease.release())


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
