"""Dead letters of tasks: the message that Celery delivered, and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from conductor.broker.dead_letters import encode_body
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.fields import new_id, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery.app.task import Context
    from kombu import Message

    from conductor.core.models import TaskResult

#: The headers of a Celery task message, protocol 2, beside which its sender may have put others.
_PROTOCOL = (
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
)
_EMBED = ("callbacks", "errbacks", "chain", "chord")
_PROPERTIES = ("content_type", "content_encoding", "correlation_id", "reply_to", "priority", "message_id")


@dataclass(frozen=True, slots=True)
class Original:
    """A message as it came from its queue."""

    queue: str
    body: str
    body_encoding: str | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_request(cls, request: Context) -> Original:
        """Put together what Celery took apart for the process that runs a task."""
        known = {name: getattr(request, name, None) for name in _PROTOCOL if hasattr(request, name)}
        embed = {name: getattr(request, name, None) for name in _EMBED}
        return cls(
            queue=request.delivery_info["routing_key"],
            body=json.dumps([request.args, request.kwargs, embed]),
            headers=headers_as_json({**(request.headers or {}), **known}),
            properties=_properties(request.properties or {}),
        )

    @classmethod
    def of_message(cls, message: Message) -> Original:
        """Take a message as kombu delivered it."""
        body, encoding = encode_body(message.body if message.body is not None else b"")
        info = message.delivery_info or {}
        found = {
            **(message.properties or {}),
            "content_type": message.content_type,
            "content_encoding": message.content_encoding,
        }
        return cls(
            queue=str(info.get("routing_key") or ""),
            body=body,
            body_encoding=encoding,
            headers=headers_as_json(message.headers or {}),
            properties=as_json(_properties(found)),
        )


@dataclass(frozen=True, slots=True)
class Fate:
    """Why a task is a dead letter; `mark` and `read` are its form in the record of the task."""

    reason: DeadLetterReason
    attempts: int = 1
    first_failure: str = ""
    escalated: bool = False
    letter_id: str = field(default_factory=new_id)

    def mark(self) -> str:
        """Write it in one word without quotes."""
        return " ".join(
            (
                self.reason.value,
                str(self.attempts),
                self.first_failure or "-",
                str(int(self.escalated)),
                self.letter_id,
            )
        )

    @classmethod
    def read(cls, mark: str) -> Fate:
        """Read what `mark` wrote."""
        reason, attempts, first_failure, escalated, letter_id = mark.split(" ")
        return cls(
            DeadLetterReason(reason),
            int(attempts),
            "" if first_failure == "-" else first_failure,
            escalated == "1",
            letter_id,
        )


def task_letter(original: Original, result: TaskResult, fate: Fate) -> DeadLetter:
    """Make the letter of a task that ended with a FAILED `result`."""
    found = result.metadata.get("error")
    error: dict[str, Any] = found if isinstance(found, dict) else {}
    task = _task_in(original)
    metadata = task.get("metadata")
    now = (result.completed_at or utc_now()).isoformat()
    return DeadLetter.model_validate(
        {
            "letter_id": fate.letter_id,
            "reason": fate.reason,
            "task_id": result.task_id,
            "task_name": _text(task.get("name")),
            "agent_id": result.agent_id,
            "agent_type": _text(task.get("assigned_to")),
            "workflow_id": _text(metadata.get("workflow_id")) if isinstance(metadata, dict) else None,
            "error_type": str(error.get("error_type") or ""),
            "error_code": str(error.get("error_code") or "TASK_FAILED"),
            "error_message": result.error_message or "",
            "traceback": _text(error.get("traceback")),
            "attempts": fate.attempts,
            "queue": original.queue,
            "first_failed_at": fate.first_failure or now,
            "last_failed_at": now,
            "escalated": fate.escalated,
            "body": original.body,
            "body_encoding": original.body_encoding,
            "headers": original.headers,
            "properties": original.properties,
        }
    )


def _task_in(original: Original) -> dict[str, Any]:
    """Give what is to be found of the TaskDefinition; nothing where the message is damaged."""
    try:
        args, kwargs, _ = json.loads(original.body)
        task = args[0] if args else kwargs.get("task") or kwargs["message"]
        if isinstance(task.get("payload"), dict):
            task = task["payload"].get("task")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return {}
    return task if isinstance(task, dict) else {}


def as_json(value: Any) -> Any:
    """Give a value as JSON in UTF-8 can hold it; None where it is nested too deeply for that."""
    try:
        text = json.dumps(value, default=repr, skipkeys=True, ensure_ascii=False)
        return from_json(text.encode(errors="replace"))
    except (RecursionError, ValueError):
        return None


def headers_as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """Give headers as a dead letter can hold them; see `as_json`."""
    return {str(as_json(name)): as_json(value) for name, value in found.items()}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _properties(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in _PROPERTIES if found.get(name) is not None}
