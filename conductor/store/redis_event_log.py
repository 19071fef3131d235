"""The events of workflows in Redis or Valkey: a stream for each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from conductor.orchestration.event_log import KEPT, EventLog, LoggedEvent, encode_event
from conductor.store.failures import ReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.store.keyspace import Keyspace
    from conductor.store.link import Link

_FIELD = b"event"


class RedisEventLog(EventLog):
    """A log that processes share."""

    _keys: Keyspace
    _link: Link

    async def append_workflow_event(self, workflow_id: str, event: Mapping[str, Any]) -> None:
        key, text = self._keys.events(workflow_id), encode_event(event)
        append = ("XADD", key, "MAXLEN", "~", KEPT, "*", _FIELD, text.encode())
        if not (milliseconds := self._keys.workflow_ttl):
            await self._link.run(append, key)
            return
        # As one piece, so that a process that dies leaves no log for ever.
        for reply in await self._link.run_all([append, ("PEXPIRE", key, milliseconds)]):
            if isinstance(reply, ReplyError):
                raise self._link.failure(reply, key)

    async def workflow_events(
        self, workflow_id: str, after: str = "", limit: int = 1000
    ) -> list[LoggedEvent]:
        key = self._keys.events(workflow_id)
        start = f"({after}" if after else "-"
        entries = await self._link.run(("XRANGE", key, start, "+", "COUNT", limit), key)
        return [LoggedEvent(position.decode(), json.loads(pair[1])) for position, pair in entries]

    async def _delete_events(self, workflow_id: str) -> None:
        key = self._keys.events(workflow_id)
        await self._link.run(("UNLINK", key), key)
