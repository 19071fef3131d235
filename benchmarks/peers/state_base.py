"""What a peer of the state benchmark must be able to do."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable

from benchmarks.load import make_agent_state
from benchmarks.role import Role
from conductor.core.state import AgentState

WIDTH = 100


class StateRole(Role):
    """Saves, gets and lists agent states; each command returns the seconds it took and checks what it got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.states: list[AgentState] = []

    async def prepare(self, count: int) -> None:
        """Make the states that the other commands use."""
        self.states = [make_agent_state(number) for number in range(count)]

    async def save(self) -> float:
        """Save every state, one after the other."""
        return await self._timed(self._each(self.save_one, self.states))

    async def save_at_once(self) -> float:
        """Save every state, WIDTH at a time."""
        return await self._timed(self.save_all(self.states))

    async def get(self) -> float:
        """Get every state, one after the other."""
        return await self._timed(self._each(self._checked_get, self.states))

    async def get_at_once(self) -> float:
        """Get every state, WIDTH at a time."""
        return await self._timed(self.get_all(self.states))

    async def list_them(self) -> float:
        """List all states."""
        began = time.perf_counter()
        found = await self.list_all()
        seconds = time.perf_counter() - began
        self._check({state.agent_id: state for state in found} == self._by_id(), "list")
        return seconds

    @abstractmethod
    async def save_one(self, state: AgentState) -> None:
        """Save one state."""

    @abstractmethod
    async def get_one(self, agent_id: str) -> AgentState | None:
        """Get one state, validated."""

    @abstractmethod
    async def list_all(self) -> list[AgentState]:
        """Get all states, validated, newest first."""

    async def save_all(self, states: list[AgentState]) -> None:
        """Save from WIDTH coroutines, unless there is a better way."""
        await self._share(self.save_one, states)

    async def get_all(self, states: list[AgentState]) -> None:
        """Get from WIDTH coroutines, unless there is a better way."""
        await self._share(self._checked_get, states)

    async def _checked_get(self, state: AgentState) -> None:
        self._check(await self.get_one(state.agent_id) == state, "get")

    def _by_id(self) -> dict[str, AgentState]:
        return {state.agent_id: state for state in self.states}

    @staticmethod
    def _check(right: bool, what: str) -> None:
        if not right:
            raise RuntimeError(f"{what} did not give what was saved")

    @staticmethod
    async def _timed(work: Awaitable[None]) -> float:
        began = time.perf_counter()
        await work
        return time.perf_counter() - began

    @staticmethod
    async def _each(work: Callable[[AgentState], Awaitable[None]], states: list[AgentState]) -> None:
        for state in states:
            await work(state)

    @staticmethod
    async def _share(work: Callable[[AgentState], Awaitable[None]], states: list[AgentState]) -> None:
        rest = iter(states)

        async def run() -> None:
            for state in rest:
                await work(state)

        await asyncio.gather(*(run() for _ in range(WIDTH)))
