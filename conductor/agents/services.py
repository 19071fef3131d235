"""What an agent may use of its host; MessageBus and StateManager are such."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from conductor.core.messages import AgentMessage
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState


class Bus(Protocol):
    """The part of `MessageBus` that agents use."""

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """See `MessageBus.publish`."""

    async def subscribe(
        self,
        channel: str,
        callback: Callable[[AgentMessage], Awaitable[None]],
        group: str | None = None,
        deduplicate: float | None = None,
    ) -> None:
        """See `MessageBus.subscribe`."""

    async def unsubscribe(self, channel: str) -> None:
        """See `MessageBus.unsubscribe`."""

    async def request(self, channel: str, message: AgentMessage, timeout: float = 30.0) -> AgentMessage:
        """See `MessageBus.request`."""


class State(Protocol):
    """The part of `StateManager` that agents use."""

    async def get_agent_state(self, agent_id: str) -> AgentState | None:
        """See `StateManager.get_agent_state`."""

    async def list_agent_states(self) -> list[AgentState]:
        """See `StateManager.list_agent_states`."""

    async def update_agent_state(self, agent_id: str, **changes: Any) -> int:
        """See `StateManager.update_agent_state`."""

    async def get_workflow_state(self, workflow_id: str) -> WorkflowState | None:
        """See `StateManager.get_workflow_state`."""

    async def get_task_result(self, task_id: str) -> TaskResult | None:
        """See `StateManager.get_task_result`."""
