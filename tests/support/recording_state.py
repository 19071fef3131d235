"""A state manager that remembers what was saved."""

from typing import Any

from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState
from conductor.orchestration.state_manager import InMemoryStateManager


class RecordingStateManager(InMemoryStateManager):
    """The real one, remembering what it held of the workflow after each of its saves."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[WorkflowState] = []
        self.whole_saves = 0

    async def _remember(self, workflow_id: str) -> None:
        state = await self.get_workflow_state(workflow_id)
        assert state is not None
        self.saved.append(state)

    async def save_workflow_state(self, state: WorkflowState, **options: Any) -> int:
        version = await super().save_workflow_state(state, **options)
        self.whole_saves += 1
        await self._remember(state.workflow_id)
        return version

    async def save_workflow_task_result(self, workflow_id: str, result: TaskResult) -> int:
        version = await super().save_workflow_task_result(workflow_id, result)
        await self._remember(workflow_id)
        return version

    async def save_workflow_agent_state(self, workflow_id: str, state: AgentState) -> int:
        version = await super().save_workflow_agent_state(workflow_id, state)
        await self._remember(workflow_id)
        return version
