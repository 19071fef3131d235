"""Watching agent states: what is announced, and the iterator over it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from conductor.core.state import AgentState

#: Changes a watch of one process holds before it keeps only the newest of each agent.
WAITING_LIMIT = 1024


class AgentStateChange(NamedTuple):
    """An agent's state as it was saved; `state` is None where it was deleted."""

    agent_id: str
    state: AgentState | None
    version: int


class AgentStateWatch(ABC):
    """The changes of agent states from now on, as an async iterator for one task.

    `async with` subscribes at once and ends the subscription; `async for` alone subscribes at the first step
    and ends it when the loop is left and the iterator closed or garbage. Only the newest change of an agent
    is certain to be seen: a reader that is slow, or was cut off, may miss those before it. Disconnecting the
    state manager ends the iteration.
    """

    @abstractmethod
    async def start(self) -> None:
        """Subscribe; what is saved after this returned is seen. Does nothing when done."""

    @abstractmethod
    async def aclose(self) -> None:
        """End the subscription and the iteration. Idempotent, from any task of the event loop."""

    @abstractmethod
    async def __anext__(self) -> AgentStateChange: ...

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class MemoryWatch(AgentStateWatch):
    """The watch of one process; `subscribe` and `unsubscribe` tell its state manager of it."""

    def __init__(
        self, subscribe: Callable[[MemoryWatch], None], unsubscribe: Callable[[MemoryWatch], None]
    ) -> None:
        self._subscribe, self._unsubscribe = subscribe, unsubscribe
        self._waiting: deque[AgentStateChange] = deque()
        self._arrived = asyncio.Event()
        self._started = self._closed = False

    async def start(self) -> None:
        if not self._started and not self._closed:
            self._subscribe(self)
            self._started = True

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._waiting.clear()
        self._arrived.set()
        self._unsubscribe(self)

    def announce(self, change: AgentStateChange) -> None:
        """Hand on a change; beyond the limit the older changes of an agent give way to its newest."""
        self._waiting.append(change)
        if len(self._waiting) > WAITING_LIMIT:
            self._waiting = deque({change.agent_id: change for change in self._waiting}.values())
        self._arrived.set()

    async def __anext__(self) -> AgentStateChange:
        await self.start()
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()
