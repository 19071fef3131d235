"""What the process of a node's agents saves of their state."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from conductor.core.enums import AgentStatus, TaskStatus
from conductor.core.exceptions import StateError
from conductor.core.fields import utc_now

if TYPE_CHECKING:
    from conductor.agents.base import BaseAgent
    from conductor.orchestration.state_manager import StateManager

logger = logging.getLogger(__name__)

#: How many of the latest tasks an agent's state names; more would make every task cost more than the last.
HISTORY = 200


class AgentStates:
    """Saves changes of agents' states field by field: the heartbeat is the parent process's; on the loop."""

    def __init__(self, manager: StateManager, heartbeat_interval: float) -> None:
        self._manager = manager
        self._patience = 3 * heartbeat_interval
        self._saved: dict[str, dict[str, Any]] = {}

    async def take_over(self, agent: BaseAgent, **metadata: Any) -> None:
        """Go on from the state that an earlier process of the agent left, perhaps in the middle of a task."""
        state = agent.state
        state.metadata = {**state.metadata, **metadata}
        try:
            left = await self._manager.get_agent_state(agent.agent_id)
            if left is None or left.agent_type != agent.agent_type:
                return
            state.completed_tasks, state.failed_tasks = left.completed_tasks, left.failed_tasks
            state.error_count, state.created_at = left.error_count, left.created_at
            if left.status is AgentStatus.RUNNING and left.current_task_id:
                result = await self._manager.get_task_result(left.current_task_id)
                if result and result.status is TaskStatus.FAILED and result.agent_id == agent.agent_id:
                    note_failure(agent, left.current_task_id)
        except StateError as error:
            logger.warning("The state that agent %s left cannot be used: %s", agent.agent_id, error)

    async def create(self, agent: BaseAgent) -> None:
        """Save the whole state."""
        await self._manager.save_agent_state(agent.state)

    async def bury(self, agent_id: str, task_id: str) -> None:
        """Save that an agent is gone which was left RUNNING with a task that another one has now."""
        try:
            found = await self._manager.get_agent_state_versioned(agent_id)
            if found is None or found.state.current_task_id != task_id:
                return
            state = found.state.model_copy(update={"status": AgentStatus.FAILED, "current_task_id": None})
            await self._manager.save_agent_state(state, expected_version=found.version)
        except StateError as error:
            # It lives and has just said so itself, or nobody can read what it left.
            logger.info("The state of agent %s, which lost task %s, stays: %s", agent_id, task_id, error)

    async def works_on(self, agent_id: str, task_id: str) -> bool:
        """Tell whether an agent says that it does a task, and its node that it lives."""
        state = await self._manager.get_agent_state(agent_id)
        if state is None or state.status is not AgentStatus.RUNNING or state.last_heartbeat is None:
            return False
        silence = (utc_now() - state.last_heartbeat).total_seconds()
        return state.current_task_id == task_id and silence < self._patience

    async def running(self, agent: BaseAgent, task_id: str) -> None:
        """Save that the agent is about to do a task."""
        await self._update(agent, status=AgentStatus.RUNNING, current_task_id=task_id)

    async def save(self, agent: BaseAgent) -> None:
        """Save what a task or a message may have changed."""
        state = agent.state
        if len(state.completed_tasks) > HISTORY:
            state.completed_tasks = state.completed_tasks[-HISTORY:]
        if len(state.failed_tasks) > HISTORY:
            state.failed_tasks = state.failed_tasks[-HISTORY:]
        await self._update(
            agent,
            status=state.status,
            current_task_id=state.current_task_id,
            completed_tasks=state.completed_tasks,
            failed_tasks=state.failed_tasks,
            error_count=state.error_count,
        )

    async def _update(self, agent: BaseAgent, **fields: Any) -> None:
        saved = self._saved.setdefault(agent.agent_id, {})
        changes = {name: value for name, value in fields.items() if name not in saved or saved[name] != value}
        if not changes:
            return
        # Agents may change their lists in place.
        saved.update(
            {name: list(value) if isinstance(value, list) else value for name, value in changes.items()}
        )
        try:
            await self._manager.update_agent_state(agent.agent_id, **changes)
        except StateError as error:
            saved.clear()
            if error.error_code != "STATE_NOT_FOUND":
                raise
            await self._manager.save_agent_state(agent.state)


def note_failure(agent: BaseAgent, task_id: str) -> None:
    """Count a failure that the agent itself does not know of."""
    state = agent.state
    state.completed_tasks = [other for other in state.completed_tasks if other != task_id]
    state.failed_tasks = [*(other for other in state.failed_tasks if other != task_id), task_id]
    state.error_count += 1
