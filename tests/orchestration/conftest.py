"""A bus, a state manager and an office of one process."""

from collections.abc import AsyncIterator

import pytest

from conductor.core.enums import AgentType
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.office import DyingState, Office
from tests.support.scripted_agent import ScriptedAgent


@pytest.fixture
async def bus() -> AsyncIterator[InMemoryMessageBus]:
    async with InMemoryMessageBus() as bus:
        yield bus


@pytest.fixture
async def state() -> AsyncIterator[InMemoryStateManager]:
    async with InMemoryStateManager() as state:
        yield state


@pytest.fixture
async def office(state: InMemoryStateManager) -> AsyncIterator[Office]:
    coordinator = AgentCoordinator(InMemoryMessageBus(), state)
    await coordinator.start()
    for agent_type in AgentType:
        await coordinator.register_agent(ScriptedAgent(agent_type.value, agent_type))
    yield Office(coordinator)
    await coordinator.stop()


@pytest.fixture
async def dying() -> AsyncIterator[DyingState]:
    async with DyingState() as state:
        yield state
