"""What is sent when a dead letter is replayed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conductor.broker.dead_letters import BASE64, PERSISTENT, decode_body
from conductor.broker.node_intake import HANDLE_MESSAGE
from conductor.broker.tasks import EXECUTE_TASK

if TYPE_CHECKING:
    from conductor.core.dead_letters import DeadLetter

#: Header in which a shared subscription counts how often a message was tried.
ATTEMPT_HEADER = "conductor_attempt"

_TASKS = (EXECUTE_TASK, HANDLE_MESSAGE)
_BEGINNING = {"retries": 0, "eta": None, "expires": None}
#: What of the original's properties is sent again; the others say how it was delivered.
_PROPERTIES = ("correlation_id", "reply_to", "priority", "message_id", "type", "app_id", "expiration")


@dataclass(frozen=True, slots=True)
class Replay:
    """A message as it goes back to the queue it came from."""

    queue: str
    body: bytes | str
    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str
    content_encoding: str
    task_id: str | None = None
    """Set for a task, whose record has to be reopened first."""
    task_name: str = ""


def replay_of(letter: DeadLetter, queue: str) -> Replay:
    """Make the message: a task as a new run under its id, anything else as it was."""
    headers = {name: value for name, value in letter.headers.items() if name != ATTEMPT_HEADER}
    given = letter.properties
    properties = {name: given[name] for name in _PROPERTIES if given.get(name) is not None}
    properties["delivery_mode"] = PERSISTENT
    body: bytes | str = decode_body(letter)
    task_id, name = headers.get("id"), headers.get("task")
    content_type = given.get("content_type") or "application/json"
    encoding = given.get("content_encoding") or ("binary" if letter.body_encoding == BASE64 else "utf-8")
    if letter.body_encoding != BASE64 and encoding != "binary":
        body = letter.body
    if name in _TASKS and isinstance(task_id, str):
        headers |= _BEGINNING
        properties.pop("expiration", None)
        again = _as_run(letter.body, letter.letter_id)
        if again is not None:
            return Replay(queue, again, headers, properties, content_type, encoding, task_id, str(name))
    return Replay(queue, body, headers, properties, content_type, encoding)


def _as_run(body: str, run: str) -> str | None:
    """Give the body of a Celery message for another run; None for what is no such body."""
    try:
        arguments, keywords, embedded = json.loads(body)
        return json.dumps([arguments, {**keywords, "run": run}, embedded])
    except (ValueError, TypeError):
        return None
