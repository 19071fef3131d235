"""Which keys and scripts do what a state manager promises: commands as data, for any client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from conductor.core.exceptions import ConfigurationError
from conductor.orchestration.state_kinds import AGENT, KINDS, WORKFLOW
from conductor.store.scripts import Script, script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conductor.orchestration.state_kinds import Kind

VERSION: Final = b"_version"

Command = list[bytes | str | int]


class Keyspace:
    """The keys under one prefix of one database.

    Args:
        prefix: what every key starts with.
        database: its number; PUB/SUB channels do not belong to a database, so it is in their names.
        expires_seconds: after how many seconds without a write entities of a kind ("agent", "workflow",
            "task_result") vanish; never, for kinds that are not named.
    """

    def __init__(self, prefix: str, database: int, expires_seconds: Mapping[str, float] | None) -> None:
        self._entities = {kind.name: f"{prefix}{kind.name}:" for kind in KINDS}
        self._indexes = {kind.name: f"{prefix}index:{kind.name}" for kind in KINDS}
        self._leases = f"{prefix}lease:"
        self._events = f"{prefix}workflow_events:"
        channel = f"{prefix}changes:agent" + (f":{database}" if database else "")
        self.channel = channel
        self._shared = {
            kind.name: (self._indexes[kind.name], f"{prefix}expiring:{kind.name}", channel) for kind in KINDS
        }
        self._ttl = {kind.name: "" for kind in KINDS} | _milliseconds(expires_seconds or {})

    def key(self, kind: Kind[Any], entity_id: str) -> bytes:
        """Return the key of an entity; ids that are no valid text get one that nothing has."""
        return (self._entities[kind.name] + entity_id).encode(errors="surrogatepass")

    def lease(self, name: str) -> bytes:
        """Return the key of a lease."""
        return (self._leases + name).encode(errors="surrogatepass")

    def events(self, workflow_id: str) -> bytes:
        """Return the key of the events of a workflow."""
        return (self._events + workflow_id).encode(errors="surrogatepass")

    @property
    def workflow_ttl(self) -> str:
        """The milliseconds after which what a workflow left vanishes; "" for never."""
        return self._ttl[WORKFLOW.name]

    def _run(
        self, kind: Kind[Any], name: str, keys: Iterable[bytes | str], *args: bytes | str | int
    ) -> Command:
        mine = (*self._shared[kind.name], *keys)
        return ["EVALSHA", script(kind.name, name).sha, len(mine), *mine, *args]

    def save(
        self,
        kind: Kind[Any],
        state: Any,
        fields: Mapping[str, bytes],
        expected: int | None,
        change: Change | None,
    ) -> Command:
        """Save an entity of these fields, as a whole or as a change of what was written before."""
        entity_id = kind.id_of(state)
        written = fields if change is None else change.fields
        removed = () if change is None else change.removed
        return self._run(
            kind,
            "save",
            (self.key(kind, entity_id),),
            *(entity_id, kind.born(state), self._ttl[kind.name]),
            "" if expected is None else expected,
            "" if change is None else change.base,
            *(fields[name] for name in kind.filters),
            *(len(removed), *removed),
            *(piece for pair in written.items() for piece in pair),
        )

    def update(
        self, agent_id: str, changes: Mapping[str, bytes], increments: Mapping[str, int] | None = None
    ) -> Command:
        """Set and increment fields of an agent state."""
        return self._run(
            AGENT,
            "update",
            (self.key(AGENT, agent_id),),
            *(agent_id.encode(errors="surrogatepass"), self._ttl[AGENT.name], len(changes)),
            *(piece for pair in changes.items() for piece in pair),
            *(piece for pair in (increments or {}).items() for piece in pair),
        )

    def put_part(self, workflow_id: str, field: str, value: bytes) -> Command:
        """Set the field of one item of a workflow's part."""
        key, entity_id = self.key(WORKFLOW, workflow_id), workflow_id.encode(errors="surrogatepass")
        return self._run(WORKFLOW, "put_part", (key,), entity_id, self._ttl[WORKFLOW.name], field, value)

    def delete(self, kind: Kind[Any], entity_id: str) -> Command:
        """Delete an entity."""
        return self._run(
            kind, "delete", (self.key(kind, entity_id),), entity_id.encode(errors="surrogatepass")
        )

    def page(self, kind: Kind[Any], filters: Mapping[str, str], limit: int | None, offset: int) -> Command:
        """Find the ids of one page."""
        index = self._indexes[kind.name]
        indexes = [f"{index}:{name}:{value}" for name, value in filters.items()] or [index]
        return self._run(kind, "page", indexes, offset, -1 if limit is None else limit)

    def forget(self, kind: Kind[Any], entity_ids: Iterable[bytes]) -> Command:
        """Take entities that are gone out of the indexes."""
        return self._run(kind, "forget", (), self._entities[kind.name], *entity_ids)


class Change:
    """The fields of an entity that differ from version `base` of it, and those that are no more."""

    __slots__ = ("base", "fields", "removed")

    def __init__(self, base: int, fields: Mapping[str, bytes], removed: list[str]) -> None:
        self.base, self.fields, self.removed = base, fields, removed


def _milliseconds(expires_seconds: Mapping[str, float]) -> dict[str, str]:
    known = {kind.name for kind in KINDS}
    for name, seconds in expires_seconds.items():
        if name not in known:
            raise ConfigurationError(
                f"expires_seconds: there is no kind {name!r}, only {', '.join(sorted(known))}"
            )
        if not seconds >= 0.001:
            raise ConfigurationError(f"expires_seconds: {name} cannot be {seconds!r}: at least 0.001 seconds")
    return {name: str(round(seconds * 1000)) for name, seconds in expires_seconds.items()}


__all__ = ["VERSION", "Change", "Command", "Keyspace", "Script"]
