"""The state manager over Redis or Valkey: hashes that a person can read, changed by scripts only."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from weakref import WeakSet

from pydantic import BaseModel

from conductor.core.exceptions import StateError
from conductor.orchestration.state_checks import below_zero, conflict
from conductor.orchestration.state_kinds import AGENT, TASK_RESULT, WORKFLOW, Kind, Versioned
from conductor.orchestration.state_manager import StateManager
from conductor.store.endpoint import read_url
from conductor.store.failures import ReplyError
from conductor.store.keyspace import VERSION, Change, Keyspace
from conductor.store.link import Link
from conductor.store.redis_event_log import RedisEventLog
from conductor.store.redis_leases import RedisLeases
from conductor.store.redis_watch import RedisWatch, Versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conductor.core.models import TaskResult
    from conductor.store.keyspace import Command

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

_CHUNK = 256
_REMEMBERED_WORKFLOWS = 64


class _Written(NamedTuple):
    """The hash of every field of a workflow at a version."""

    version: int
    hashes: dict[str, int]


class RedisStateManager(RedisLeases, RedisEventLog, StateManager):
    """Keeps state in a Redis 6.2 or newer, or a Valkey.

    Hashes `{prefix}agent:{id}`, `{prefix}workflow:{id}`, `{prefix}task_result:{id}` hold one JSON value per
    field; items of a workflow's `task_results` and `agent_states` are fields of their own. Every write is one
    Lua script, which changes the entity and its indexes or neither. Concurrent calls share one connection and
    go out as a pipeline, so `asyncio.gather` over many is cheap.

    `save_workflow_state` sends only the fields that changed since this manager last wrote or read that
    workflow, where nobody else wrote to it meanwhile, else all of them.

    `{prefix}lease:{name}` is a string that names who holds a lease, `{prefix}workflow_events:{id}` a stream
    of what happened in a workflow.

    Args:
        url: redis://, rediss:// or unix://; StateError STATE_BAD_URL otherwise.
        key_prefix: what every key starts with. On a cluster it needs a hash tag, as in "{conductor}:".
        expires_seconds: after how many seconds without a write entities of a kind ("agent", "workflow",
            "task_result") vanish; by default never.
        connect_timeout: seconds for one attempt to connect.
        reply_timeout: seconds a server may be silent while it owes a reply.
        retry_seconds: how long a call waits for a server that went away; `connect` does not wait.

    Raises, besides what StateManager does: STATE_BAD_URL, STATE_UNAVAILABLE, STATE_AUTH_FAILED,
    STATE_FORBIDDEN (a right is missing), STATE_FULL, STATE_READ_ONLY, and STATE_ERROR for any other reply.
    STATE_UNAVAILABLE with "maybe_done" in its details means that the connection was lost before the reply to
    an update, a deletion or a compare-and-set came.
    """

    def __init__(
        self,
        url: str,
        key_prefix: str = "conductor:",
        *,
        expires_seconds: Mapping[str, float] | None = None,
        connect_timeout: float = 5.0,
        reply_timeout: float = 10.0,
        retry_seconds: float = 5.0,
    ) -> None:
        endpoint = read_url(url)
        self._keys = Keyspace(key_prefix, endpoint.database, expires_seconds)
        self._link = Link(endpoint, connect_timeout, reply_timeout, retry_seconds)
        self._watches: WeakSet[RedisWatch] = WeakSet()
        self._written: OrderedDict[str, _Written] = OrderedDict()

    def __repr__(self) -> str:
        return f"<RedisStateManager {self._link.endpoint.shown}>"

    @property
    def is_connected(self) -> bool:
        return self._link.is_open

    @property
    def link(self) -> Link:
        """The connection, for commands of others that have to be carried out in order with those here."""
        return self._link

    async def connect(self) -> None:
        """Connect and log in; StateError where that fails, at once."""
        await self._link.open()

    async def disconnect(self) -> None:
        """End the connections; what is stored stays."""
        for watch in list(self._watches):
            await watch.aclose()
        await self._link.close()

    def watch_agent_states(self) -> RedisWatch:
        watch = RedisWatch(
            self._link, self._keys.channel, self._agent_versions, self.get_agent_state_versioned
        )
        self._watches.add(watch)
        return watch

    async def _save(self, kind: Kind[M], state: M, expected_version: int | None) -> int:
        fields = kind.encode(state)
        if kind.parts:
            return await self._save_changes(kind, state, fields, expected_version)
        return await self._send_save(kind, state, fields, expected_version, None)

    async def _send_save(
        self, kind: Kind[M], state: M, fields: dict[str, bytes], expected: int | None, change: Change | None
    ) -> int:
        key = self._keys.key(kind, kind.id_of(state))
        command = self._keys.save(kind, state, fields, expected, change)
        try:
            return int(await self._link.run(command, key, again=expected is None))
        except ReplyError as reply:
            if reply.word != "CONFLICT":
                raise
            actual = int(str(reply).split()[1])
            raise conflict(kind, kind.id_of(state), expected, actual) from None

    async def save_task_results(self, results: Iterable[TaskResult]) -> None:
        """Save many results, each atomically, as pipelines; raise the first failure in the end."""
        failures: list[StateError] = []
        batch: list[tuple[Command, bytes]] = []
        for result in results:
            try:
                fields = TASK_RESULT.encode(result)
            except StateError as error:
                failures.append(error)
                continue
            key = self._keys.key(TASK_RESULT, result.task_id)
            batch.append((self._keys.save(TASK_RESULT, result, fields, None, None), key))
        for start in range(0, len(batch), _CHUNK):
            failures += await self._send_batch(batch[start : start + _CHUNK])
        if failures:
            raise failures[0]

    async def _send_batch(self, batch: list[tuple[Command, bytes]]) -> list[StateError]:
        failures = []
        replies = await self._link.run_all([command for command, _ in batch])
        for (command, key), reply in zip(batch, replies, strict=True):
            if isinstance(reply, ReplyError):
                try:
                    await self._link.run(command, key)
                except StateError as error:
                    failures.append(error)
        return failures

    async def _save_changes(
        self, kind: Kind[M], state: M, fields: dict[str, bytes], expected: int | None
    ) -> int:
        entity_id = kind.id_of(state)
        hashes = {name: hash(value) for name, value in fields.items()}
        known = self._written.get(entity_id)
        version = None
        if known is not None:
            before = known.hashes
            changed = {name: value for name, value in fields.items() if before.get(name) != hashes[name]}
            change = Change(known.version, changed, [name for name in before if name not in fields])
            try:
                version = await self._send_save(kind, state, fields, expected, change)
            except ReplyError as reply:
                if reply.word != "STALE":
                    raise
        if version is None:
            version = await self._send_save(kind, state, fields, expected, None)
        self._remember(entity_id, _Written(version, hashes))
        return version

    def _remember(self, entity_id: str, written: _Written) -> None:
        self._written[entity_id] = written
        self._written.move_to_end(entity_id)
        while len(self._written) > _REMEMBERED_WORKFLOWS:
            self._written.popitem(last=False)

    async def _get(self, kind: Kind[M], entity_id: str) -> Versioned[M] | None:
        key = self._keys.key(kind, entity_id)
        reply = await self._link.run(("HGETALL", key), key)
        if not reply:
            return None
        found = self._decoded(kind, key, reply)
        if kind.parts:
            pairs = zip(reply[::2], reply[1::2], strict=True)
            hashes = {name.decode(errors="replace"): hash(value) for name, value in pairs if name != VERSION}
            self._remember(entity_id, _Written(found.version, hashes))
        return found

    def _decoded(self, kind: Kind[M], key: bytes, reply: list[bytes]) -> Versioned[M]:
        values = iter(reply)
        fields = dict(zip(values, values, strict=True))
        state = kind.decode(shown := key.decode(errors="replace"), fields)
        try:
            return Versioned(state, int(fields[VERSION]))
        except (KeyError, ValueError):
            raise StateError(
                f"{shown} is damaged: field '_version': it is missing or no number. Save the state again.",
                "STATE_CORRUPT",
                {"key": shown, "field": "_version", "kind": kind.name},
            ) from None

    async def _delete(self, kind: Kind[M], entity_id: str) -> bool:
        self._written.pop(entity_id, None)
        if kind.name == WORKFLOW.name:
            await self._delete_events(entity_id)
        command = self._keys.delete(kind, entity_id)
        return bool(await self._link.run(command, self._keys.key(kind, entity_id), again=False))

    async def _list(
        self, kind: Kind[M], filters: Mapping[str, str], limit: int | None, offset: int
    ) -> list[M]:
        """Read pages until one is complete: what expired meanwhile leaves the indexes and makes room."""
        found: list[M] = []
        seen = offset
        while True:
            room = None if limit is None else offset + limit - seen
            ids = [] if room == 0 else await self._link.run(self._keys.page(kind, filters, room, seen))
            gone: list[bytes] = []
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                states, missing = await self._read_chunk(kind, chunk)
                found += [state for state in states if kind.matches(state, filters)]
                gone += missing
            if not gone:
                return found
            try:
                await self._link.run(self._keys.forget(kind, gone))
            except StateError as error:
                # Who may only read leaves it to those who may write.
                if error.error_code != "STATE_FORBIDDEN":
                    raise
            if room is None:
                return found
            seen += len(ids) - len(gone)

    async def _read_chunk(self, kind: Kind[M], ids: list[bytes]) -> tuple[list[M], list[bytes]]:
        """Return the states of ids, and the ids that are gone; log and count what is damaged."""
        prefix = self._keys.key(kind, "")
        keys = [prefix + entity_id for entity_id in ids]
        replies = await self._link.run_all([("HGETALL", key) for key in keys])
        states, gone = [], []
        for entity_id, key, reply in zip(ids, keys, replies, strict=True):
            try:
                if isinstance(reply, ReplyError):
                    raise self._link.failure(reply, key)
                if reply:
                    states.append(self._decoded(kind, key, reply).state)
                else:
                    gone.append(entity_id)
            except StateError as error:
                if error.error_code != "STATE_CORRUPT":
                    raise
                self.corrupt_count += 1
                logger.warning("state: a list leaves out what is damaged: %s", error)
        return states, gone

    async def _update(
        self, entity_id: str, changes: Mapping[str, bytes], increments: Mapping[str, int]
    ) -> int | None:
        key = self._keys.key(AGENT, entity_id)
        command = self._keys.update(entity_id, changes, increments)
        try:
            version = await self._link.run(command, key, again=not increments)
        except ReplyError as reply:
            word, field = str(reply).split()
            if word == "NEGATIVE":
                raise below_zero(entity_id, field) from None
            shown = key.decode(errors="replace")
            raise StateError(
                f"{shown} is damaged: field {field!r}: it is not a whole number of 0 or more",
                "STATE_CORRUPT",
                {"key": shown, "field": field, "kind": AGENT.name},
            ) from None
        return None if version is None else int(version)

    async def _put_part(self, workflow_id: str, field: str, value: bytes) -> int | None:
        command = self._keys.put_part(workflow_id, field, value)
        versions = await self._link.run(command, self._keys.key(WORKFLOW, workflow_id))
        if versions is None:
            return None
        before, version = map(int, versions)
        known = self._written.get(workflow_id)
        if known is not None and known.version == before:
            known.hashes[field] = hash(value)
            self._written[workflow_id] = _Written(version, known.hashes)
        return version

    async def _agent_versions(self) -> Versions:
        ids = await self._link.run(self._keys.page(AGENT, {}, None, 0))
        prefix = self._keys.key(AGENT, "")
        replies = await self._link.run_all([("HGET", prefix + agent_id, VERSION) for agent_id in ids])
        return {
            agent_id.decode(): int(reply)
            for agent_id, reply in zip(ids, replies, strict=True)
            if isinstance(reply, bytes) and reply.isdigit()
        }
