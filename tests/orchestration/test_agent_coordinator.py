"""Agents of one process: registered, chosen, given tasks, retried."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.models import TaskDefinition, TaskResult
from conductor.core.state import AgentState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.policy_engine import (
    MaxConcurrentTasksPolicy,
    Policy,
    PolicyEngine,
    PolicyResult,
    TaskTimeoutPolicy,
)
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.scripted_agent import ScriptedAgent, failing
from tests.support.waiting import wait_until


@pytest.fixture
async def coordinator(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> AsyncIterator[AgentCoordinator]:
    made = AgentCoordinator(bus, state)
    await made.start()
    yield made
    await made.stop()


def task(**fields: Any) -> TaskDefinition:
    return TaskDefinition.model_validate({"name": "build", "assigned_to": "coding", **fields})


def policies(*some: Policy) -> PolicyEngine:
    engine = PolicyEngine()
    for policy in some:
        engine.register_policy(policy)
    return engine


class Gate:
    """Work that tells that it began and waits to be let go."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, agent: ScriptedAgent, definition: TaskDefinition) -> TaskResult:
        self.began.set()
        await self.go.wait()
        return agent.result(definition)


async def code_of_dispatch(coordinator: AgentCoordinator, definition: TaskDefinition) -> str:
    with pytest.raises(AgentError) as caught:
        await coordinator.dispatch_task(definition)
    assert caught.value.task_id == definition.task_id
    return caught.value.error_code


async def test_starting_and_stopping_are_idempotent(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    coordinator = AgentCoordinator(bus, state)
    seen = [coordinator.is_started]
    for step in (coordinator.start, coordinator.start, coordinator.stop, coordinator.stop):
        await step()
        seen.append(coordinator.is_started)
    assert seen == [False, True, True, False, False]
    assert bus.is_connected
    assert state.is_connected


async def test_what_start_connected_stop_disconnects() -> None:
    bus, state = InMemoryMessageBus(), InMemoryStateManager()
    coordinator = AgentCoordinator(bus, state)
    await coordinator.start()
    connected = (bus.is_connected, state.is_connected)
    await coordinator.stop()
    assert connected == (True, True)
    assert (bus.is_connected, state.is_connected) == (False, False)


async def test_stop_stops_every_agent_even_after_one_that_fails(coordinator: AgentCoordinator) -> None:
    class Stubborn(ScriptedAgent):
        async def _on_stop(self) -> None:
            raise OSError("stuck")

    stubborn, other = Stubborn("first"), ScriptedAgent("second")
    await coordinator.register_agent(stubborn)
    await coordinator.register_agent(other)
    await coordinator.stop()
    assert other.status is AgentStatus.CANCELLED
    assert coordinator.agent_count == 0


async def test_registering_starts_the_agent_and_saves_its_state(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    agent = ScriptedAgent()
    agent.state.status = AgentStatus.CANCELLED
    await coordinator.register_agent(agent)
    assert agent.status is AgentStatus.IDLE
    assert await state.get_agent_state("coder") == agent.state
    assert coordinator.get_agent("coder") is agent
    assert coordinator.get_agent("nobody") is None
    assert coordinator.list_agents() == [agent]
    assert coordinator.agent_count == 1


async def test_registering_twice_is_refused(coordinator: AgentCoordinator) -> None:
    first = ScriptedAgent()
    await coordinator.register_agent(first)
    with pytest.raises(AgentError) as caught:
        await coordinator.register_agent(ScriptedAgent())
    assert caught.value.error_code == "AGENT_ALREADY_REGISTERED"
    assert caught.value.agent_id == "coder"
    assert coordinator.list_agents() == [first]


async def test_an_agent_that_does_not_start_is_not_registered(coordinator: AgentCoordinator) -> None:
    class Broken(ScriptedAgent):
        async def _on_start(self) -> None:
            raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await coordinator.register_agent(Broken())
    assert coordinator.agent_count == 0


async def test_unregistering_stops_the_agent_and_deletes_its_state(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    agent = ScriptedAgent()
    await coordinator.register_agent(agent)
    assert await coordinator.unregister_agent("coder") is True
    assert await coordinator.unregister_agent("coder") is False
    assert agent.status is AgentStatus.CANCELLED
    assert await state.get_agent_state("coder") is None
    assert coordinator.get_agent("coder") is None


async def test_agents_by_type_and_availability(coordinator: AgentCoordinator) -> None:
    idle, busy, tester = ScriptedAgent("idle"), ScriptedAgent("busy"), ScriptedAgent("t", AgentType.TEST)
    for agent in (idle, busy, tester):
        await coordinator.register_agent(agent)
    busy.state.status = AgentStatus.RUNNING
    assert coordinator.get_agents_by_type(AgentType.CODING) == [idle, busy]
    assert coordinator.get_agents_by_type(AgentType.MONITOR) == []
    assert coordinator.get_available_agents() == [idle, tester]
    assert coordinator.get_available_agents(AgentType.CODING) == [idle]
    assert coordinator.get_available_agents(type=AgentType.TEST) == [tester]
    assert coordinator.get_available_agents(agent_type=AgentType.TEST) == [tester]


async def test_a_task_is_done_by_an_agent_of_its_type_and_everything_is_saved(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    await coordinator.register_agent(ScriptedAgent("tester", AgentType.TEST))
    await coordinator.register_agent(ScriptedAgent())
    definition = task()
    result = await coordinator.dispatch_task(definition)
    assert (result.agent_id, result.status) == ("coder", TaskStatus.COMPLETED)
    assert await state.get_task_result(definition.task_id) == result
    saved = await state.get_agent_state("coder")
    assert saved is not None
    assert (saved.status, saved.completed_tasks) == (AgentStatus.IDLE, [definition.task_id])


async def test_the_saved_state_shows_who_is_running_what(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    gate = Gate()
    await coordinator.register_agent(ScriptedAgent(work=gate))
    definition = task()
    running = asyncio.create_task(coordinator.dispatch_task(definition))
    await gate.began.wait()
    saved = await state.get_agent_state("coder")
    gate.go.set()
    await running
    assert saved is not None
    assert (saved.status, saved.current_task_id) == (AgentStatus.RUNNING, definition.task_id)


async def test_a_task_without_a_type_is_refused(coordinator: AgentCoordinator) -> None:
    await coordinator.register_agent(ScriptedAgent())
    assert await code_of_dispatch(coordinator, task(assigned_to=None)) == "NO_AGENT_TYPE"


async def test_a_task_that_nobody_is_free_for_is_refused(coordinator: AgentCoordinator) -> None:
    assert await code_of_dispatch(coordinator, task()) == "NO_AVAILABLE_AGENT"
    agent = ScriptedAgent()
    await coordinator.register_agent(agent)
    agent.state.status = AgentStatus.WAITING
    assert await code_of_dispatch(coordinator, task()) == "NO_AVAILABLE_AGENT"
    assert agent.tasks == []


async def test_a_denied_task_is_refused_and_the_agent_stays_available(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    coordinator = AgentCoordinator(bus, state, policies(TaskTimeoutPolicy()))
    agent = ScriptedAgent()
    await coordinator.register_agent(agent)
    assert await code_of_dispatch(coordinator, task(timeout_seconds=3600)) == "POLICY_VIOLATION"
    assert agent.tasks == []
    assert coordinator.get_available_agents() == [agent]
    assert (await coordinator.dispatch_task(task())).status is TaskStatus.COMPLETED


class RemoteStateManager(InMemoryStateManager):
    """Lets others run while it saves, as one that talks to a server does."""

    async def save_agent_state(self, state: AgentState, **options: Any) -> int:
        await asyncio.sleep(0)
        return await super().save_agent_state(state, **options)


async def dispatched_at_once(
    bus: InMemoryMessageBus, agents: int, tasks: int, refused: int, engine: PolicyEngine | None = None
) -> list[Any]:
    """Keep all agents busy until `refused` tasks were refused; give all outcomes."""
    gate = Gate()
    coordinator = AgentCoordinator(bus, RemoteStateManager(), engine)
    await coordinator.start()
    for number in range(agents):
        await coordinator.register_agent(ScriptedAgent(f"coder-{number}", work=gate))
    running = [asyncio.create_task(coordinator.dispatch_task(task())) for _ in range(tasks)]
    await wait_until(lambda: sum(one.done() for one in running) == refused)
    gate.go.set()
    return await asyncio.gather(*running, return_exceptions=True)


async def test_concurrent_tasks_go_to_different_agents_and_no_agent_gets_two(
    bus: InMemoryMessageBus,
) -> None:
    *results, refusal = sorted(
        await dispatched_at_once(bus, agents=3, tasks=4, refused=1),
        key=lambda outcome: outcome.agent_id,
    )
    assert [result.agent_id for result in results] == ["coder-0", "coder-1", "coder-2"]
    assert refusal.error_code == "NO_AVAILABLE_AGENT"


async def test_a_limit_on_concurrent_tasks_holds_for_tasks_dispatched_at_once(
    bus: InMemoryMessageBus,
) -> None:
    class Slow(MaxConcurrentTasksPolicy):
        async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
            result = await super().evaluate(context)
            await asyncio.sleep(0)
            return result

    outcomes = await dispatched_at_once(bus, agents=5, tasks=5, refused=3, engine=policies(Slow(2)))
    codes = [outcome.error_code for outcome in outcomes if isinstance(outcome, AgentError)]
    assert codes == ["POLICY_VIOLATION"] * 3


async def test_tasks_one_after_the_other_are_spread_over_the_agents(coordinator: AgentCoordinator) -> None:
    for number in range(2):
        await coordinator.register_agent(ScriptedAgent(f"coder-{number}"))
    agents = [(await coordinator.dispatch_task(task())).agent_id for _ in range(4)]
    assert agents == ["coder-0", "coder-1"] * 2


async def test_a_failed_result_is_given_and_saved(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    agent = ScriptedAgent(work=failing(ValueError("bad")))
    await coordinator.register_agent(agent)
    result = await coordinator.dispatch_task(task())
    assert (result.status, result.error_message) == (TaskStatus.FAILED, "ValueError: bad")
    assert await state.get_task_result(result.task_id) == result
    assert coordinator.get_available_agents() == [agent]


async def test_an_agents_own_error_goes_to_the_caller_and_its_state_is_saved(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    await coordinator.register_agent(ScriptedAgent(work=failing(AgentError("gone", "coder", "x", "GONE"))))
    definition = task()
    with pytest.raises(AgentError, match="gone"):
        await coordinator.dispatch_task(definition)
    saved = await state.get_agent_state("coder")
    assert saved is not None
    assert (saved.status, saved.failed_tasks) == (AgentStatus.IDLE, [definition.task_id])
    assert len(coordinator.get_available_agents()) == 1


async def test_a_cancelled_dispatch_frees_the_agent(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    gate = Gate()
    agent = ScriptedAgent(work=gate)
    await coordinator.register_agent(agent)
    running = asyncio.create_task(coordinator.dispatch_task(task()))
    await gate.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert coordinator.get_available_agents() == [agent]
    saved = await state.get_agent_state("coder")
    assert saved is not None
    assert saved.status is AgentStatus.IDLE


async def test_a_task_that_takes_too_long_is_ended_and_failed(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    agent = ScriptedAgent(work=Gate())
    await coordinator.register_agent(agent)
    definition = task(timeout_seconds=1)
    result = await coordinator.dispatch_task(definition)
    assert (result.status, result.error_message) == (TaskStatus.FAILED, "The task timed out after 1 s.")
    assert result.metadata["error"]["error_code"] == "TASK_TIMED_OUT"
    assert await state.get_task_result(definition.task_id) == result
    saved = await state.get_agent_state("coder")
    assert saved is not None
    assert (saved.status, saved.failed_tasks, saved.error_count) == (
        AgentStatus.IDLE,
        [definition.task_id],
        1,
    )


async def test_an_agent_unregistered_while_it_runs_leaves_no_state(
    coordinator: AgentCoordinator, state: InMemoryStateManager
) -> None:
    gate = Gate()
    await coordinator.register_agent(ScriptedAgent(work=gate))
    running = asyncio.create_task(coordinator.dispatch_task(task()))
    await gate.began.wait()
    await coordinator.unregister_agent("coder")
    gate.go.set()
    assert (await running).status is TaskStatus.COMPLETED
    assert await state.get_agent_state("coder") is None
