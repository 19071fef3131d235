"""The state manager: the contract, and the implementation for one process."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from weakref import WeakSet

from pydantic import BaseModel

from conductor.orchestration.event_log import EventLog, MemoryEventLog
from conductor.orchestration.leases import Leases, MemoryLeases
from conductor.orchestration.state_checks import (
    below_zero,
    checked_page,
    conflict,
    encode_changes,
    not_connected,
    not_found,
)
from conductor.orchestration.state_kinds import AGENT, KINDS, TASK_RESULT, WORKFLOW, Kind, Versioned
from conductor.orchestration.state_watch import AgentStateChange, AgentStateWatch, MemoryWatch

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase
    from conductor.core.models import TaskResult
    from conductor.core.state import AgentState, WorkflowState

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class StateManager(Leases, EventLog, ABC):
    """Keeps agent states, workflow states with their events, task results and leases; on one event loop.

    What is stored is a copy. The last write wins, unless a save is given `expected_version`: then it is
    done only if the entity still has that version (0: does not exist), else StateError STATE_CONFLICT. A save
    returns the new version; a version is a positive number that grows, also over a deletion.

    Lists are sorted newest first (agents by created_at, the others by started_at), and leave out damaged
    entities, which are logged and counted in `corrupt_count`; `limit` None means all.

    Raises, all StateError: STATE_NOT_CONNECTED, STATE_INVALID (an argument), STATE_NOT_SERIALIZABLE (a value
    that JSON cannot hold), STATE_CORRUPT (a get met a damaged entity), STATE_CONFLICT; implementations that
    use a server add codes of their own.
    """

    corrupt_count: int = 0
    """How many damaged entities lists have left out so far."""

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether `connect` was called and `disconnect` was not."""

    @abstractmethod
    async def connect(self) -> None:
        """Make the state manager usable; does nothing when it is."""

    @abstractmethod
    async def disconnect(self) -> None:
        """End its use; does nothing when done."""

    @abstractmethod
    def watch_agent_states(self) -> AgentStateWatch:
        """Return an iterator over the changes of agent states: `async for change in ...`."""

    @abstractmethod
    async def _save(self, kind: Kind[M], state: M, expected_version: int | None) -> int:
        """Save one entity as a whole and return its version."""

    @abstractmethod
    async def _get(self, kind: Kind[M], entity_id: str) -> Versioned[M] | None:
        """Return one entity."""

    @abstractmethod
    async def _delete(self, kind: Kind[M], entity_id: str) -> bool:
        """Delete one entity and tell whether it was there."""

    @abstractmethod
    async def _list(
        self, kind: Kind[M], filters: Mapping[str, str], limit: int | None, offset: int
    ) -> list[M]:
        """Return the entities that pass the filters, newest first, without the damaged ones."""

    @abstractmethod
    async def _update(
        self, entity_id: str, changes: Mapping[str, bytes], increments: Mapping[str, int]
    ) -> int | None:
        """Set and increment fields of an agent state; return the version, None where there is none."""

    @abstractmethod
    async def _put_part(self, workflow_id: str, field: str, value: bytes) -> int | None:
        """Set the field of one item of a workflow's part; return the version, None where there is none."""

    async def save_agent_state(self, state: AgentState, *, expected_version: int | None = None) -> int:
        """Save the state of an agent and return its version."""
        return await self._save(AGENT, state, expected_version)

    async def get_agent_state(self, agent_id: str) -> AgentState | None:
        """Return the state of an agent, None where there is none."""
        found = await self._get(AGENT, agent_id)
        return found and found.state

    async def get_agent_state_versioned(self, agent_id: str) -> Versioned[AgentState] | None:
        """Return the state of an agent and its version."""
        return await self._get(AGENT, agent_id)

    async def update_agent_state(
        self, agent_id: str, *, increment: Mapping[str, int] | None = None, **changes: Any
    ) -> int:
        """Set the named fields of an agent state, and `updated_at`, in one step; return the version.

        Other fields are not touched, so concurrent updates of different fields are all kept, and none of
        concurrent increments, such as `increment={"error_count": 1}`, is lost.

        Raises StateError STATE_INVALID for a field that there is not, may not be changed (agent_id,
        created_at) or cannot have the value, STATE_NOT_FOUND where there is no such agent.
        """
        encoded, increments = encode_changes(changes, increment or {})
        version = await self._update(agent_id, encoded, increments)
        if version is None:
            raise not_found("agent", agent_id)
        return version

    async def delete_agent_state(self, agent_id: str) -> bool:
        """Delete the state of an agent; False where there was none."""
        return await self._delete(AGENT, agent_id)

    async def list_agent_states(
        self,
        *,
        status: AgentStatus | str | None = None,
        agent_type: AgentType | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[AgentState]:
        """Return the states of agents, newest first."""
        filters = AGENT.wanted({"status": status, "agent_type": agent_type})
        return await self._list(AGENT, filters, *checked_page(limit, offset))

    async def save_workflow_state(self, state: WorkflowState, *, expected_version: int | None = None) -> int:
        """Save the state of a workflow run and return its version.

        Encodes the whole state: where it has thousands of results and one more came, use
        `save_workflow_task_result`.
        """
        return await self._save(WORKFLOW, state, expected_version)

    async def save_workflow_task_result(self, workflow_id: str, result: TaskResult) -> int:
        """Put one result into `task_results` of a saved workflow, at the same cost however many there are.

        Returns the workflow's version; StateError STATE_NOT_FOUND where there is no such workflow.
        """
        return await self._save_part(workflow_id, "task_results", TASK_RESULT, result)

    async def save_workflow_agent_state(self, workflow_id: str, state: AgentState) -> int:
        """Put one agent's state into `agent_states` of a saved workflow, likewise."""
        return await self._save_part(workflow_id, "agent_states", AGENT, state)

    async def _save_part(self, workflow_id: str, part: str, kind: Kind[M], item: M) -> int:
        version = await self._put_part(workflow_id, f"{part}:{kind.id_of(item)}", kind.encode_whole(item))
        if version is None:
            raise not_found("workflow", workflow_id)
        return version

    async def get_workflow_state(self, workflow_id: str) -> WorkflowState | None:
        """Return the state of a workflow run, None where there is none."""
        found = await self._get(WORKFLOW, workflow_id)
        return found and found.state

    async def get_workflow_state_versioned(self, workflow_id: str) -> Versioned[WorkflowState] | None:
        """Return the state of a workflow run and its version."""
        return await self._get(WORKFLOW, workflow_id)

    async def delete_workflow_state(self, workflow_id: str) -> bool:
        """Delete the state of a workflow run; False where there was none."""
        return await self._delete(WORKFLOW, workflow_id)

    async def list_workflow_states(
        self,
        *,
        status: TaskStatus | str | None = None,
        current_phase: WorkflowPhase | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[WorkflowState]:
        """Return the states of workflow runs, newest first."""
        filters = WORKFLOW.wanted({"status": status, "current_phase": current_phase})
        return await self._list(WORKFLOW, filters, *checked_page(limit, offset))

    async def save_task_result(self, result: TaskResult, *, expected_version: int | None = None) -> int:
        """Save the result of a task and return its version."""
        return await self._save(TASK_RESULT, result, expected_version)

    async def save_task_results(self, results: Iterable[TaskResult]) -> None:
        """Save many results, each atomically; the first that fails is raised after all were tried."""
        saves = (self._save(TASK_RESULT, result, None) for result in results)
        for outcome in await asyncio.gather(*saves, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def get_task_result(self, task_id: str) -> TaskResult | None:
        """Return the result of a task, None where there is none."""
        found = await self._get(TASK_RESULT, task_id)
        return found and found.state

    async def get_task_result_versioned(self, task_id: str) -> Versioned[TaskResult] | None:
        """Return the result of a task and its version."""
        return await self._get(TASK_RESULT, task_id)

    async def delete_task_result(self, task_id: str) -> bool:
        """Delete the result of a task; False where there was none."""
        return await self._delete(TASK_RESULT, task_id)

    async def list_task_results(
        self, *, status: TaskStatus | str | None = None, limit: int | None = None, offset: int = 0
    ) -> list[TaskResult]:
        """Return the results of tasks, newest first."""
        return await self._list(
            TASK_RESULT, TASK_RESULT.wanted({"status": status}), *checked_page(limit, offset)
        )

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()


class _Entry(NamedTuple):
    fields: dict[bytes, bytes]
    version: int
    born: int


class InMemoryStateManager(MemoryLeases, MemoryEventLog, StateManager):
    """Keeps state in this process until it disconnects; encoded, so that it does what the Redis one does."""

    def __init__(self) -> None:
        self._connected = False
        self._entries: dict[str, dict[str, _Entry]] = {kind.name: {} for kind in KINDS}
        self._watches: WeakSet[MemoryWatch] = WeakSet()
        self._leases: dict[str, tuple[str, float]] = {}
        self._events: dict[str, deque[tuple[int, str]]] = {}

    @property
    def is_connected(self) -> bool:
        return self._connected

    async def connect(self) -> None:
        self._connected = True

    async def disconnect(self) -> None:
        self._connected = False
        for entries in self._entries.values():
            entries.clear()
        self._leases.clear()
        self._events.clear()
        for watch in list(self._watches):
            watch.close()

    def watch_agent_states(self) -> AgentStateWatch:
        return MemoryWatch(self._add_watch, self._watches.discard)

    def _add_watch(self, watch: MemoryWatch) -> None:
        self._check_connected()
        self._watches.add(watch)

    def _check_connected(self) -> None:
        if not self._connected:
            raise not_connected()

    async def _save(self, kind: Kind[M], state: M, expected_version: int | None) -> int:
        self._check_connected()
        fields = {name.encode(): value for name, value in kind.encode(state).items()}
        entries, entity_id = self._entries[kind.name], kind.id_of(state)
        before = entries[entity_id].version if entity_id in entries else 0
        if expected_version not in (None, before):
            raise conflict(kind, entity_id, expected_version, before)
        entries[entity_id] = entry = _Entry(fields, _next_version(before), kind.born(state))
        self._announce(kind, entity_id, entry)
        return entry.version

    async def _get(self, kind: Kind[M], entity_id: str) -> Versioned[M] | None:
        self._check_connected()
        entry = self._entries[kind.name].get(entity_id)
        return entry and Versioned(kind.decode(f"{kind.name}:{entity_id}", entry.fields), entry.version)

    async def _delete(self, kind: Kind[M], entity_id: str) -> bool:
        self._check_connected()
        if kind is WORKFLOW:
            self._events.pop(entity_id, None)
        entry = self._entries[kind.name].pop(entity_id, None)
        if entry is None:
            return False
        self._announce(kind, entity_id, entry._replace(fields={}, version=_next_version(entry.version)))
        return True

    async def _list(
        self, kind: Kind[M], filters: Mapping[str, str], limit: int | None, offset: int
    ) -> list[M]:
        self._check_connected()
        newest_first = sorted(
            self._entries[kind.name].items(),
            key=lambda item: (item[1].born, item[0].encode(errors="surrogatepass")),
            reverse=True,
        )
        states = (kind.decode(f"{kind.name}:{entity_id}", entry.fields) for entity_id, entry in newest_first)
        wanted = [state for state in states if kind.matches(state, filters)]
        return wanted[offset:] if limit is None else wanted[offset : offset + limit]

    async def _update(
        self, entity_id: str, changes: Mapping[str, bytes], increments: Mapping[str, int]
    ) -> int | None:
        self._check_connected()
        entry = self._entries[AGENT.name].get(entity_id)
        if entry is None:
            return None
        new = {name.encode(): value for name, value in changes.items()}
        for name, step in increments.items():
            total = int(entry.fields[name.encode()]) + step
            if total < 0:
                raise below_zero(entity_id, name)
            new[name.encode()] = b"%d" % total
        entry = entry._replace(fields=entry.fields | new, version=_next_version(entry.version))
        self._entries[AGENT.name][entity_id] = entry
        self._announce(AGENT, entity_id, entry)
        return entry.version

    async def _put_part(self, workflow_id: str, field: str, value: bytes) -> int | None:
        self._check_connected()
        entry = self._entries[WORKFLOW.name].get(workflow_id)
        if entry is None:
            return None
        entry.fields[field.encode()] = value
        self._entries[WORKFLOW.name][workflow_id] = entry._replace(version=_next_version(entry.version))
        return self._entries[WORKFLOW.name][workflow_id].version

    def _announce(self, kind: Kind[Any], entity_id: str, entry: _Entry) -> None:
        if kind is not AGENT:
            return
        for watch in list(self._watches):
            state = AGENT.decode(entity_id, entry.fields) if entry.fields else None
            watch.announce(AgentStateChange(entity_id, state, entry.version))


def _next_version(before: int) -> int:
    return max(time.time_ns() // 1000, before + 1)
