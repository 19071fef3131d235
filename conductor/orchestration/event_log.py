"""What happened in workflow runs, kept for those who look later."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from conductor.core.exceptions import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Events that are kept of one workflow, at least; older ones go first.
KEPT = 10_000

Event = dict[str, Any]


class LoggedEvent(NamedTuple):
    """An event and its place in the log."""

    position: str
    event: Event


class EventLog(ABC):
    """The part of a state manager that keeps the events of workflows, in the order in which they came.

    The log of a workflow is deleted with its state, and expires as that does. An event that is appended while
    a connection breaks may be there twice. Raises StateError: STATE_NOT_CONNECTED, STATE_NOT_SERIALIZABLE,
    and what a server adds.
    """

    @abstractmethod
    async def append_workflow_event(self, workflow_id: str, event: Mapping[str, Any]) -> None:
        """Append an event, a JSON object; of a workflow the newest 10,000 are kept, at least."""

    @abstractmethod
    async def workflow_events(
        self, workflow_id: str, after: str = "", limit: int = 1000
    ) -> list[LoggedEvent]:
        """Give up to `limit` events behind the position `after`, or the oldest; none if there is no log."""


class MemoryEventLog(EventLog):
    """The events of one process."""

    _events: dict[str, deque[tuple[int, str]]]

    @abstractmethod
    def _check_connected(self) -> None:
        """Raise StateError, code STATE_NOT_CONNECTED."""

    async def append_workflow_event(self, workflow_id: str, event: Mapping[str, Any]) -> None:
        self._check_connected()
        text = encode_event(event)
        log = self._events.setdefault(workflow_id, deque(maxlen=KEPT))
        log.append((log[-1][0] + 1 if log else 1, text))

    async def workflow_events(
        self, workflow_id: str, after: str = "", limit: int = 1000
    ) -> list[LoggedEvent]:
        self._check_connected()
        log = self._events.get(workflow_id, ())
        found = [LoggedEvent(str(n), json.loads(text)) for n, text in log if n > int(after or 0)]
        return found[:limit]


def encode_event(event: Mapping[str, Any]) -> str:
    """Write an event as JSON; StateError, code STATE_NOT_SERIALIZABLE."""
    try:
        return json.dumps(event, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StateError(f"An event is no JSON object: {error}", "STATE_NOT_SERIALIZABLE") from error
