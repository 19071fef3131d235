"""Which message, task, agent and workflow the running code is about, for its log lines."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor.core.messages import AgentMessage

#: The ids that every line has; a line about a message that belongs to a request has its `correlation_id` too.
IDS = ("message_id", "task_id", "agent_id", "workflow_id")

_WORDS = {"agent": "agent_id", "task": "task_id", "workflow": "workflow_id", "message": "message_id"}
# What would end the line, or be taken for a place of an argument.
_NOT_IN_A_LINE = re.compile(r"[%\s\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ID_LIMIT = 200
#: Characters of a message that are looked at for its id, which stands first.
_BEGINNING = 4096

_Bound = tuple[Mapping[str, str], "AgentMessage | None"]
_NOTHING: _Bound = (MappingProxyType({}), None)

#: Ids, and the message whose callback bound them: those of who subscribed or published are not its own.
_bound: ContextVar[_Bound] = ContextVar("conductor_log_ids", default=_NOTHING)
current_message: ContextVar[AgentMessage | None] = ContextVar("conductor_log_message", default=None)
"""The message whose callback runs here; its ids are looked at only where a line is written."""


def current_ids() -> dict[str, str]:
    """Give the ids of what runs here: in a coroutine, and in the tasks and threads that it started.

    For threads that holds where they were given the context, as `asyncio.to_thread` does.
    """
    message = current_message.get()
    ids = dict(_bound_under(message))
    if message is not None:
        ids["message_id"] = message.message_id
        if message.correlation_id is not None:
            ids["correlation_id"] = message.correlation_id
    return ids


@contextmanager
def bound_ids(ids: Mapping[str, str | None]) -> Iterator[None]:
    """Have lines written here carry these ids, beside those that are bound already; None says nothing."""
    message = current_message.get()
    given = {name: value for name, value in ids.items() if value is not None}
    token = _bound.set(({**_bound_under(message), **given}, message))
    try:
        yield
    finally:
        _bound.reset(token)


def _bound_under(message: AgentMessage | None) -> Mapping[str, str]:
    ids, bound_by = _bound.get()
    return ids if bound_by is message else _NOTHING[0]


def message_ids(body: object) -> dict[str, str | None]:
    """Read the id of a message from the beginning of its JSON, which may be anything, large and damaged."""
    if not isinstance(body, str | bytes):
        return {}
    try:
        found = from_json(body[:_BEGINNING], allow_partial=True)
    except (ValueError, TypeError):  # also of half a character
        return {}
    value = found.get("message_id") if isinstance(found, dict) else None
    return {"message_id": value if isinstance(value, str) else None}


def in_words(ids: Mapping[str, str | None]) -> str:
    """Write ids as the beginning of a line: `[agent coding-1, task 8f0c] `; nothing where there are none."""
    said = [
        f"{word} {_NOT_IN_A_LINE.sub('?', str(ids[name])[:_ID_LIMIT])}"
        for word, name in _WORDS.items()
        if ids.get(name) is not None
    ]
    return f"[{', '.join(said)}] " if said else ""


class TaskIds(logging.Filter):
    """Puts the ids before the text of every line that is written while a task or a callback runs.

    For handlers with a formatter of your own: there the lines of all loggers come by. What
    `conductor.configure_logging` sets up needs none. A record factory would do it for the whole of a process
    that may be somebody else's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`; lets every record through."""
        if not hasattr(record, "log_prefix") and (ids := current_ids()):
            prefix = in_words(ids)
            vars(record).update({**dict.fromkeys(IDS), **ids, "log_prefix": prefix})
            record.msg = f"{prefix}{record.msg}"
        return True


class StandardError(logging.Handler):
    """Looks up standard error for every record: a live table replaces it for its time."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as logging.StreamHandler does
            self.handleError(record)
