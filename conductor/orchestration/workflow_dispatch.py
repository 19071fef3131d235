"""How a workflow's tasks get to agents: of this process, or on nodes."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from conductor.core.enums import TaskStatus
from conductor.core.exceptions import AgentError
from conductor.orchestration.agent_coordinator import AgentCoordinator

if TYPE_CHECKING:
    from datetime import datetime

    from conductor.core.enums import AgentType
    from conductor.core.models import TaskDefinition, TaskResult
    from conductor.orchestration.state_manager import StateManager


class TaskDispatcher(Protocol):
    """Whatever gets a task done by an agent: AgentCoordinator in this process, or Conductor over nodes."""

    async def dispatch_task(self, task: TaskDefinition) -> TaskResult:
        """Do `task` and give its result; what is raised is recorded as a failed task."""


@runtime_checkable
class DurableDispatcher(Protocol):
    """A dispatcher whose tasks outlive the process that dispatched them."""

    async def resume_task(self, task: TaskDefinition) -> TaskResult:
        """Do `task`, or go on with what its workflow dispatched of it before; cancelled, leave it be."""

    async def revoke_task(self, task: TaskDefinition) -> TaskResult | None:
        """Cancel what its workflow dispatched of `task`; give its result if it had ended before."""


class Dispatch:
    """Carries out the tasks of one run."""

    def __init__(self, coordinator: TaskDispatcher, state_manager: StateManager) -> None:
        self._coordinator = coordinator
        self._state_manager = state_manager
        self._active: Counter[AgentType | None] = Counter()
        self._endings = 0
        self._changed = asyncio.Event()

    async def carry_out(self, task: TaskDefinition, dispatched_since: datetime | None) -> TaskResult:
        """Have a task done; one that may have been dispatched since some time is not done twice."""
        durable = isinstance(self._coordinator, DurableDispatcher)
        if dispatched_since is not None:
            found = await self._state_manager.get_task_result(task.task_id)
            # With nodes, what else than COMPLETED is final is in their records.
            final = found is not None and (not durable or found.status is TaskStatus.COMPLETED)
            if found is not None and final and found.started_at >= dispatched_since and _is_of(found, task):
                return found
        if isinstance(self._coordinator, DurableDispatcher):
            return await self._coordinator.resume_task(task)
        return await self._when_an_agent_is_free(task)

    async def revoke(self, task: TaskDefinition) -> TaskResult | None:
        """Cancel a task that may have been dispatched; its result if it had ended before."""
        if isinstance(self._coordinator, DurableDispatcher):
            return await self._coordinator.revoke_task(task)
        return None

    async def _when_an_agent_is_free(self, task: TaskDefinition) -> TaskResult:
        """Wait for one of our own tasks to free its agent, where all agents of the type are busy."""
        kind = task.assigned_to
        while True:
            seen = self._endings
            self._active[kind] += 1
            refusal: AgentError | None = None
            try:
                if isinstance(self._coordinator, AgentCoordinator):
                    return await self._coordinator.dispatch_task(task, wait=math.inf)
                return await self._coordinator.dispatch_task(task)
            except AgentError as error:
                if error.error_code != "NO_AVAILABLE_AGENT":
                    raise
                refusal = error
            finally:
                self._active[kind] -= 1
                self._endings += refusal is None
                self._changed.set()
                self._changed = asyncio.Event()
            while self._endings == seen:
                if not self._active[kind]:
                    raise refusal
                await self._changed.wait()


def _is_of(result: TaskResult, task: TaskDefinition) -> bool:
    """Tell whether a result is of the same workflow: others may have tasks of the same id."""
    return result.metadata.get("workflow_id") == task.metadata.get("workflow_id")
