"""What becomes of errors of agents of one process: retried, escalated, put aside."""

import pytest

from conductor.core.channels import DLQ, ERRORS
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.models import TaskDefinition, TaskResult
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.error_handler import CircuitBreakerState, ErrorHandler, RetryPolicy
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.buses import Inbox
from tests.support.scripted_agent import ScriptedAgent, failing, succeed

QUICK = RetryPolicy(initial_delay=0.001, max_delay=0.01)


def task() -> TaskDefinition:
    return TaskDefinition(name="build", assigned_to=AgentType.CODING)


async def handled(
    bus: InMemoryMessageBus, state: InMemoryStateManager, agent: ScriptedAgent
) -> tuple[AgentCoordinator, ErrorHandler]:
    errors = ErrorHandler(bus, state, QUICK)
    coordinator = AgentCoordinator(bus, state, error_handler=errors)
    await coordinator.register_agent(agent)
    return coordinator, errors


@pytest.mark.parametrize("kind", ["agent_error", "other"])
async def test_a_transient_error_is_tried_again_with_a_handler(
    bus: InMemoryMessageBus, state: InMemoryStateManager, kind: str
) -> None:
    error: ConductorError = ConductorError("slow", "LLM_TIMEOUT")
    if kind == "agent_error":
        error = AgentError("slow", "coder", "x", "LLM_TIMEOUT")
    agent = ScriptedAgent(work=failing(error, error))
    coordinator, errors = await handled(bus, state, agent)
    result = await coordinator.dispatch_task(task())
    assert result.status is TaskStatus.COMPLETED
    assert len(agent.tasks) == 3
    assert agent.state.completed_tasks == [result.task_id]
    assert agent.state.failed_tasks == []
    assert errors.dead_letter_count == 0


async def test_retries_end_in_a_dead_letter_and_the_failed_result(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    inbox = Inbox()
    await bus.subscribe(DLQ, inbox)
    agent = ScriptedAgent(work=failing(*[ConductorError("slow", "LLM_TIMEOUT")] * 9))
    coordinator, errors = await handled(bus, state, agent)
    result = await coordinator.dispatch_task(task())
    assert result.status is TaskStatus.FAILED
    assert len(agent.tasks) == 1 + QUICK.max_retries
    (letter,) = errors.get_dead_letter_queue()
    assert (letter["error_code"], letter["attempt"], letter["task_id"]) == ("LLM_TIMEOUT", 3, result.task_id)
    assert len(inbox.messages) == 1


async def test_an_error_that_is_not_transient_is_escalated_and_not_tried_again(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    inbox = Inbox()
    await bus.subscribe(ERRORS, inbox)
    agent = ScriptedAgent(work=failing(AgentError("gone", "coder", "x", "GONE")))
    coordinator, _ = await handled(bus, state, agent)
    with pytest.raises(AgentError) as caught:
        await coordinator.dispatch_task(task())
    assert caught.value.error_code == "GONE"
    assert len(agent.tasks) == 1
    assert inbox.messages[0].payload["error_code"] == "GONE"


async def test_a_result_that_the_agent_declared_failed_is_no_error(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    async def red(agent: ScriptedAgent, definition: TaskDefinition) -> TaskResult:
        return agent.result(definition, TaskStatus.FAILED)

    inbox = Inbox()
    await bus.subscribe("conductor:*", inbox)
    coordinator, _ = await handled(bus, state, ScriptedAgent(work=red))
    assert (await coordinator.dispatch_task(task())).status is TaskStatus.FAILED
    assert inbox.messages == []


async def test_success_is_told_to_the_agents_breaker(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    agent = ScriptedAgent()
    coordinator, errors = await handled(bus, state, agent)
    for _ in range(4):
        agent.work = failing(ValueError("bad"), ValueError("bad"))
        await coordinator.dispatch_task(task())
        await coordinator.dispatch_task(task())
        agent.work = succeed
        await coordinator.dispatch_task(task())
    assert errors.get_circuit_breaker("coder").state is CircuitBreakerState.CLOSED
