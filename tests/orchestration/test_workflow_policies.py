"""Workflows and the policies of the coordinator that does their tasks."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.policy_engine import (
    AgentTypeConcurrencyPolicy,
    BudgetPolicy,
    Policy,
    PolicyEngine,
    PolicyResult,
)
from conductor.orchestration.state_manager import InMemoryStateManager
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.support.office import gate
from tests.support.scripted_agent import ScriptedAgent


class Crew:
    """Four coders, and how many of them were at work at the same time."""

    def __init__(self, coordinator: AgentCoordinator) -> None:
        self.coordinator = coordinator
        self.at_work = 0
        self.most = 0

    async def work(self, agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await asyncio.sleep(0)
        self.at_work -= 1
        return agent.result(task)

    def under(self, *policies: Policy) -> WorkflowEngine:
        self.coordinator.policy_engine = PolicyEngine()
        for policy in policies:
            self.coordinator.policy_engine.register_policy(policy)
        return WorkflowEngine(self.coordinator, self.coordinator.state_manager)


@pytest.fixture
async def crew(state: InMemoryStateManager) -> AsyncIterator[Crew]:
    coordinator = AgentCoordinator(InMemoryMessageBus(), state)
    await coordinator.start()
    made = Crew(coordinator)
    for number in range(4):
        await coordinator.register_agent(ScriptedAgent(f"coder-{number}", AgentType.CODING, made.work))
    yield made
    await coordinator.stop()


def graph(count: int, **fields: Any) -> WorkflowDefinition:
    """Tasks that are all ready when the first has ended."""
    first = TaskDefinition(name="first", assigned_to=AgentType.CODING)
    tasks = [
        TaskDefinition(name=f"t{number}", assigned_to=AgentType.CODING, depends_on=["first"], **fields)
        for number in range(count)
    ]
    return WorkflowDefinition(name="graph", tasks=[first, *tasks])


async def test_ready_tasks_wait_until_the_policies_allow_them(crew: Crew) -> None:
    final = await crew.under(AgentTypeConcurrencyPolicy({"coding": 2})).run_workflow(graph(9))
    assert (final.completed_task_count, final.error_log) == (10, [])
    assert crew.most == 2


async def test_a_task_that_no_waiting_helps_fails_at_once_and_keeps_nobody_waiting(crew: Crew) -> None:
    definition = graph(3, metadata={"cost": 3})
    final = await crew.under(BudgetPolicy(7)).run_workflow(definition)
    assert (final.completed_task_count, final.failed_task_count) == (3, 1)
    (entry,) = final.error_log
    assert (entry["error_code"], entry["details"]["policy_name"]) == ("POLICY_VIOLATION", "budget")


class Opinion(Policy):
    """A policy of a user who says nothing about waiting."""

    name, description = "opinion", "Nothing may be done."

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        return self._deny("it is Sunday") if "task" in context else self._allow()


async def test_a_denial_that_says_nothing_about_waiting_fails_the_task(crew: Crew) -> None:
    final = await crew.under(Opinion()).run_workflow(graph(0))
    assert final.failed_task_count == 1
    assert "it is Sunday" in final.error_log[0]["message"]


async def test_the_gate_is_that_of_the_coordinator_unless_another_is_given(crew: Crew) -> None:
    state = crew.coordinator.state_manager
    crew.coordinator.policy_engine = gate(1.0)
    assert WorkflowEngine(crew.coordinator, state).policy_engine is crew.coordinator.policy_engine
    other = gate(0.1)
    assert WorkflowEngine(crew.coordinator, state, other).policy_engine is other
    definition = WorkflowDefinition(name="w", tasks=[TaskDefinition(name="t", assigned_to=AgentType.TEST)])
    final = await WorkflowEngine(crew.coordinator, state).run_workflow(definition)
    assert (final.status, final.error_log[-1]["error_code"]) == (TaskStatus.FAILED, "PHASE_GATE_CLOSED")


async def test_dispatching_waits_for_as_long_as_it_is_told(crew: Crew) -> None:
    crew.under(AgentTypeConcurrencyPolicy({"coding": 1}))
    dispatch = crew.coordinator.dispatch_task
    orders = [TaskDefinition(name=f"t{number}", assigned_to=AgentType.CODING) for number in range(4)]
    results = await asyncio.gather(*(dispatch(order, wait=30) for order in orders))
    assert [result.status for result in results] == [TaskStatus.COMPLETED] * 4
    assert crew.most == 1
    crew.under(AgentTypeConcurrencyPolicy({"coding": 0}))
    with pytest.raises(AgentError) as caught:
        await dispatch(orders[0], wait=0.2)
    assert caught.value.error_code == "POLICY_VIOLATION"


async def test_a_run_that_stops_at_a_failure_says_so(crew: Crew) -> None:
    state = crew.coordinator.state_manager
    definition = WorkflowDefinition(name="w", tasks=[TaskDefinition(name="t", assigned_to=AgentType.TEST)])
    engine = WorkflowEngine(crew.coordinator, state, stop_on_failure=True)
    final = await engine.run_workflow(definition)
    assert final.status is TaskStatus.FAILED
    assert final.error_log[-1]["error_code"] == "STOPPED_ON_FAILURE"
    assert "'t'" in final.error_log[-1]["message"]
