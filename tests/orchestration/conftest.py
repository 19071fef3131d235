"""A bus and a state manager of one process."""

from collections.abc import AsyncIterator

import pytest

from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager


@pytest.fixture
async def bus() -> AsyncIterator[InMemoryMessageBus]:
    async with InMemoryMessageBus() as bus:
        yield bus


@pytest.fixture
async def state() -> AsyncIterator[InMemoryStateManager]:
    async with InMemoryStateManager() as state:
        yield state
