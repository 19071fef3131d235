"""What is sent when a dead letter is replayed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from dataclasses import replace as dc_replace
from typing import TYPE_CHECKING, Any

from conductor.broker.dead_letters import BASE64, PERSISTENT, ROUTING_HEADERS, decode_body
from conductor.broker.node_intake import HANDLE_MESSAGE
from conductor.broker.signing import SIGNING_HEADERS, Signed
from conductor.broker.task_message import SENT_AT
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.topology import TRIAL_HEADER, work_queue

if TYPE_CHECKING:
    from conductor.broker.signing import Signer
    from conductor.core.dead_letters import DeadLetter

_TASKS = (EXECUTE_TASK, HANDLE_MESSAGE)
_BEGINNING = {"retries": 0, "eta": None, "expires": None}
#: What of the original's properties is sent again; the others say how it was delivered.
_PROPERTIES = ("correlation_id", "reply_to", "message_id", "type", "app_id", "expiration")
_LEFT_OUT = SIGNING_HEADERS | ROUTING_HEADERS | {TRIAL_HEADER}


@dataclass(frozen=True, slots=True)
class Replay:
    """A message as it goes back to the queue it came from."""

    queue: str
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    priority: int | None
    content_type: str
    content_encoding: str
    task_id: str | None = None
    """Set for a task, whose record has to be reopened first."""
    task_name: str = ""


def replay_of(letter: DeadLetter, queue: str) -> Replay:
    """Make the message: a task as a new run under its id, anything else as it was."""
    given = letter.properties
    priority = given.get("priority")
    binary = letter.body_encoding == BASE64
    encoding = given.get("content_encoding") or ("binary" if binary else "utf-8")
    properties = {name: given[name] for name in _PROPERTIES if given.get(name) is not None}
    replay = Replay(
        queue=queue,
        # Bytes: py-amqp 5.4 would encode a text as the original claims to be, which may be no encoding.
        body=decode_body(letter),
        headers={name: value for name, value in letter.headers.items() if name not in _LEFT_OUT},
        properties=properties | {"delivery_mode": PERSISTENT},
        priority=priority if isinstance(priority, int) else None,
        content_type=given.get("content_type") or "application/json",
        content_encoding=encoding,
    )
    return _as_new_run(replay, letter) if letter.headers.get("task") in _TASKS else replay


def signed(replay: Replay, signer: Signer) -> Replay:
    """Sign what is replayed: whoever replays a letter vouches for it."""
    if work_queue(replay.queue) is None:
        return _signed_event(replay, signer)
    what = Signed(
        place=replay.queue,
        body=replay.body,
        headers=replay.headers,
        content_type=replay.content_type,
        content_encoding=replay.content_encoding,
        reply_to=str(replay.properties.get("reply_to") or ""),
        correlation_id=str(replay.properties.get("correlation_id") or ""),
    )
    return dc_replace(replay, headers=replay.headers | signer.sign(what))


def _signed_event(replay: Replay, signer: Signer) -> Replay:
    """Sign what goes back to a group, for its queue: nobody may publish a copy."""
    what = Signed(
        replay.queue,
        replay.body,
        replay.headers,
        reply_to=str(replay.properties.get("reply_to") or ""),
        correlation_id=str(replay.properties.get("correlation_id") or ""),
    )
    return dc_replace(replay, headers=replay.headers | signer.sign(what))


def _as_new_run(replay: Replay, letter: DeadLetter) -> Replay:
    properties = {name: value for name, value in replay.properties.items() if name != "expiration"}
    beginning = _BEGINNING | ({SENT_AT: time.time()} if SENT_AT in replay.headers else {})
    replay = dc_replace(replay, headers=replay.headers | beginning, properties=properties)
    body, task_id = _body_of_run(letter.body, letter.letter_id), letter.headers.get("id")
    if body is None or not isinstance(task_id, str):
        return replay
    return dc_replace(replay, body=body.encode(), task_id=task_id, task_name=letter.headers["task"])


def _body_of_run(body: str, run: str) -> str | None:
    """Give the body of a Celery message for another run; None for what is no such body."""
    try:
        arguments, keywords, embedded = json.loads(body)
        return json.dumps([arguments, {**keywords, "run": run}, embedded])
    except (ValueError, TypeError, RecursionError):
        return None
