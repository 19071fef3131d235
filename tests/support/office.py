"""Workflows in one process: an office with an agent of each type."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from conductor.core.channels import workflow_channel
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import StateError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.policy_engine import PhaseGatePolicy, PolicyEngine
from conductor.orchestration.state_manager import InMemoryStateManager, StateManager
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.support.scripted_agent import ScriptedAgent


@asynccontextmanager
async def staffed(state: StateManager) -> AsyncIterator[AgentCoordinator]:
    """A coordinator with one agent of each type, its id the type's name."""
    coordinator = AgentCoordinator(InMemoryMessageBus(), state)
    await coordinator.start()
    for agent_type in AgentType:
        await coordinator.register_agent(ScriptedAgent(agent_type.value, agent_type))
    yield coordinator
    await coordinator.stop()


class Office:
    """One agent of each type, its id the type's name, and what is published on the workflow's channel."""

    def __init__(self, coordinator: AgentCoordinator) -> None:
        self.coordinator = coordinator
        self.state = coordinator.state_manager
        self.messages: list[AgentMessage] = []
        self.begun = asyncio.Event()

    def agent(self, agent_id: str) -> ScriptedAgent:
        found = self.coordinator.get_agent(agent_id)
        assert isinstance(found, ScriptedAgent)
        return found

    def engine(self, **options: Any) -> WorkflowEngine:
        return WorkflowEngine(self.coordinator, self.state, **options)

    async def listen(self, workflow_id: str) -> None:
        async def hear(message: AgentMessage) -> None:
            self.messages.append(message)

        await self.coordinator.message_bus.subscribe(workflow_channel(workflow_id), hear)

    async def never_end(self, agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        self.begun.set()
        await asyncio.Event().wait()
        return agent.result(task)

    @property
    def events(self) -> list[str]:
        return [message.payload["event"] for message in self.messages if "event" in message.payload]

    def ran(self) -> list[str]:
        agents = self.coordinator.list_agents()
        return sorted(task.task_id for a in agents if isinstance(a, ScriptedAgent) for task in a.tasks)


def workflow(*agent_types: str, **fields: Any) -> WorkflowDefinition:
    tasks = [{"task_id": f"t-{kind}", "name": kind, "assigned_to": kind} for kind in agent_types]
    return WorkflowDefinition.model_validate({"workflow_id": "w", "name": "flow", "tasks": tasks, **fields})


def gate(rate: float) -> PolicyEngine:
    engine = PolicyEngine()
    engine.register_policy(PhaseGatePolicy(rate))
    return engine


class DyingState(InMemoryStateManager):
    """A store that is away from the n-th save of a workflow on, until it is told to be back."""

    def __init__(self) -> None:
        super().__init__()
        self.saves_left = -1

    def _count(self) -> None:
        if self.saves_left == 0:
            raise StateError("away", "STATE_UNAVAILABLE")
        self.saves_left -= 1

    async def save_workflow_state(self, state: WorkflowState, **options: Any) -> int:
        self._count()
        return await super().save_workflow_state(state, **options)

    async def save_workflow_task_result(self, workflow_id: str, result: TaskResult) -> int:
        self._count()
        return await super().save_workflow_task_result(workflow_id, result)


def monitor(*feedbacks: dict[str, Any] | None) -> Any:
    """A monitor that gives these feedbacks one after the other, then none."""
    left = list(feedbacks)

    async def work(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        given = left.pop(0) if left else None
        output = {} if given is None else {"feedback": {"source_agent_id": "monitor", **given}}
        return agent._create_result(task.task_id, TaskStatus.COMPLETED, json.loads(json.dumps(output)))

    return work
