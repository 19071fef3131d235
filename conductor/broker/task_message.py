"""What the message of a task has to be like; Celery 5.7 looks at little of it before it relies on all."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from celery.exceptions import InvalidTaskError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from conductor.core.message_size import WRAPPING, bytes_in, check_size, most_on_the_wire, too_large

if TYPE_CHECKING:
    from celery.worker.request import Request
    from kombu import Message

#: Seconds; a limit that is longer than that is none.
LONGEST = 10**9
#: The header that says when a task was sent, as a Unix time.
SENT_AT = "conductor_sent_at"
#: Levels of lists and objects, as many as a dead letter can hold; Python gives up at about 900.
DEEPEST = 200


def sent_at_in(headers: Any) -> float | None:
    """Give when a task was sent, where its headers say it."""
    value = headers.get(SENT_AT) if isinstance(headers, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _utf8(text: str) -> str:
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_utf8)]
Seconds = Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False)]
Signatures = list[dict[str, Any]]


class _Keywords(BaseModel):
    """The arguments beside the task or message itself."""

    model_config = ConfigDict(strict=True)

    run: Text | None = None
    agent_id: Text = ""
    reply_to: Text | None = None


class _Embedded(BaseModel):
    """The third part of the body."""

    model_config = ConfigDict(strict=True, extra="forbid")

    callbacks: Signatures | None = None
    errbacks: Signatures | None = None
    chain: Signatures | None = None
    chord: dict[str, Any] | None = None


class _Request(_Embedded):
    """What Celery makes of the headers and properties; those that it may lack may be null."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[Text, Field(min_length=1)]
    task: Text
    args: list[Any]
    keywords: Annotated[_Keywords, Field(alias="kwargs")]
    shadow: Text | None = None
    root_id: Text | None = None
    parent_id: Text | None = None
    group: Text | None = None
    taskset: Text | None = None
    group_index: int | None = None
    retries: Annotated[int, Field(ge=0)] | None = None
    timelimit: Annotated[list[Seconds | None], Field(min_length=2, max_length=2)] | None = None
    argsrepr: Text | None = None
    kwargsrepr: Text | None = None
    origin: Text | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    stamped_headers: list[Text] | None = None
    stamps: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None
    reply_to: Text | None = None
    correlation_id: Text | None = None


def check(request: Request) -> None:
    """Raise InvalidTaskError, which says why, for what Celery or a node cannot work with."""
    *_, embedded = request._payload  # noqa: SLF001 - Celery's own name for its body
    try:
        _Request.model_validate(request.request_dict)
        _Embedded.model_validate({} if embedded is None else embedded)
        _check_depth(request.request_dict)
        request.task.__header__(*request.args, **request.kwargs)
        if request.eta is not None:
            request.eta.astimezone(UTC)
            request.eta.astimezone()
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise InvalidTaskError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidTaskError(str(error)) from error


def task_bytes(message: Any) -> int:
    """Count the bytes of a message that Celery is about to send, as compact JSON."""
    return _json_bytes(message.body) + _json_bytes(message.headers)


def _json_bytes(value: Any) -> int:
    try:
        return len(to_json(value, fallback=repr))
    except ValueError:
        # Half a character has no form in UTF-8, but one in ASCII.
        return len(json.dumps(value, default=repr, skipkeys=True))


def check_task_size(message: Message, limit: int) -> None:
    """Raise MessageBusError, code MESSAGE_TOO_LARGE, for a message as it came."""
    size = bytes_in(message.body or b"")
    if size > most_on_the_wire(limit):
        raise too_large("The message", size, limit)
    size += _json_bytes(message.headers)
    if size <= limit + WRAPPING:
        return
    with contextlib.suppress(ValueError):
        # Celery's JSON is longer than the one that is counted where a message is sent.
        size = task_bytes(SimpleNamespace(body=from_json(message.body), headers=message.headers))
    check_size("The message", size, limit + WRAPPING)


def _check_depth(found: dict[str, Any]) -> None:
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested over {DEEPEST} levels deep")
