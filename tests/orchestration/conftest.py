"""A bus, a state manager and an office of one process."""

from collections.abc import AsyncIterator

import pytest

from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.office import DyingState, Office, staffed


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
    async with staffed(state) as coordinator:
        yield Office(coordinator)


@pytest.fixture
async def dying() -> AsyncIterator[DyingState]:
    async with DyingState() as state:
        yield state
