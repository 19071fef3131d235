"""Running the tasks of one phase: as listed, or as a graph."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from conductor.core.enums import TaskStatus
from conductor.core.exceptions import WorkflowError
from conductor.core.fields import utc_now
from conductor.core.log_ids import bound_ids
from conductor.orchestration.workflow_ledger import failed, not_run
from conductor.orchestration.workflow_progress import ended, id_in_round

if TYPE_CHECKING:
    from datetime import datetime

    from conductor.core.models import TaskDefinition
    from conductor.orchestration.workflow_dispatch import Dispatch
    from conductor.orchestration.workflow_ledger import Ledger

logger = logging.getLogger(__name__)


class PhaseTasks:
    """The tasks of the phase that a run is in, without those that ended in this round before.

    `dispatched_since` is the start of the run if a process that died may have dispatched some of them.
    """

    def __init__(
        self,
        ledger: Ledger,
        dispatch: Dispatch,
        tasks: list[TaskDefinition],
        dispatched_since: datetime | None,
    ) -> None:
        self._ledger = ledger
        self._dispatch = dispatch
        self._all = tasks
        self._waiting = [task for task in tasks if not ended(ledger.state, task)]
        self._dispatched_since = dispatched_since

    async def run(self, *, as_graph: bool) -> None:
        """Run them; after a failure no more of them are started where the run stops at failures."""
        if as_graph:
            await self._run_graph()
            return
        while self._waiting and not self._stopped():
            await self._do(self._waiting.pop(0))

    async def _run_graph(self) -> None:
        running: dict[asyncio.Task[None], str] = {}
        try:
            while True:
                if not self._stopped():
                    unsettled = {task.task_id for task in self._waiting} | set(running.values())
                    for task in self._ready(unsettled):
                        self._waiting.remove(task)
                        running[asyncio.create_task(self._do(task))] = task.task_id
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    del running[one]
                    one.result()
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _ready(self, unsettled: set[str]) -> list[TaskDefinition]:
        needs = self._ledger.plan.needs
        return [task for task in self._waiting if all(n.task_id not in unsettled for n in needs(task))]

    def _stopped(self) -> bool:
        if not self._ledger.progress.stop_on_failure:
            return False
        state = self._ledger.state
        results = [state.task_results[task.task_id] for task in self._all if ended(state, task)]
        return any(result.status is not TaskStatus.COMPLETED for result in results)

    async def _do(self, task: TaskDefinition) -> None:
        with bound_ids({"task_id": task.task_id}):
            await self._carry_out(task)

    async def _carry_out(self, task: TaskDefinition) -> None:
        ledger = self._ledger
        obstacle = ledger.plan.obstacle(task, ledger.state.task_results)
        if obstacle is not None:
            await ledger.record(task, not_run(task, obstacle))
            return
        started_at = utc_now()
        await ledger.begin(task)
        try:
            inputs = ledger.plan.inputs(task, ledger.state.task_results)
            await ledger.lease.hold()
            result = await self._dispatch.carry_out(
                as_dispatched(task, ledger, inputs), self._dispatched_since
            )
        except Exception as error:
            if isinstance(error, WorkflowError) and error.error_code == "WORKFLOW_LEASE_LOST":
                raise
            logger.exception("workflow %s: task %s could not be done", ledger.state.workflow_id, task.task_id)
            await ledger.record(task, failed(task, error, started_at), error)
            return
        await ledger.record(task, result)


def as_dispatched(
    task: TaskDefinition, ledger: Ledger, inputs: dict[str, object] | None = None
) -> TaskDefinition:
    """Give a task as its agent gets it: with the ids of its workflow, and in the id the feedback round."""
    state, feedback = ledger.state, ledger.progress.feedback
    input_data = dict(task.input_data if inputs is None else inputs)
    if feedback is not None:
        input_data["feedback"] = feedback.model_dump(mode="json")
    ids = {"workflow_id": state.workflow_id, "workflow_task_id": task.task_id}
    return task.model_copy(
        update={
            "task_id": id_in_round(task.task_id, state.feedback_count),
            "input_data": input_data,
            "metadata": task.metadata | ids,
        }
    )
