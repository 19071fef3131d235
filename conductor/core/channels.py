"""The names of channels: building, parsing, checking and matching them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from conductor.core.exceptions import MessageBusError

PREFIX = "conductor"
BROADCAST = "conductor:broadcast"
RESPONSE = "conductor:response"
ERRORS = "conductor:errors"
DLQ = "conductor:dlq"

MAX_CHANNEL_BYTES = 200
MAX_NAME_CHARACTERS = 128

_BLANK_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
_NOT_IN_A_NAME = re.compile(r"[:*#\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class ChannelKind(StrEnum):
    """What a channel is for."""

    AGENT = "agent"
    PHASE = "phase"
    WORKFLOW = "workflow"
    TASK = "task"
    BROADCAST = "broadcast"
    RESPONSE = "response"
    ERRORS = "errors"
    DLQ = "dlq"
    OTHER = "other"


_STARTS = {
    f"{PREFIX}:{kind.value}:": kind
    for kind in (ChannelKind.AGENT, ChannelKind.PHASE, ChannelKind.WORKFLOW, ChannelKind.TASK)
}
_FIXED = {
    BROADCAST: ChannelKind.BROADCAST,
    RESPONSE: ChannelKind.RESPONSE,
    ERRORS: ChannelKind.ERRORS,
    DLQ: ChannelKind.DLQ,
}


@dataclass(frozen=True, slots=True)
class Channel:
    """A parsed channel.

    `name` is the id or name of AGENT, PHASE, WORKFLOW and TASK, the whole text of OTHER, and None for the
    rest.
    """

    kind: ChannelKind
    name: str | None = None

    def __str__(self) -> str:
        if self.kind is ChannelKind.OTHER:
            return self.name or ""
        base = f"{PREFIX}:{self.kind.value}"
        return base if self.name is None else f"{base}:{self.name}"


def agent_channel(agent_id: str) -> str:
    """Name the channel of one agent; a bad id is a MessageBusError with code INVALID_CHANNEL."""
    return _named_channel(ChannelKind.AGENT, agent_id)


def phase_channel(name: str) -> str:
    """Name the channel of one phase; a bad name is a MessageBusError with code INVALID_CHANNEL."""
    return _named_channel(ChannelKind.PHASE, name)


def workflow_channel(workflow_id: str) -> str:
    """Name the channel of one workflow run; a bad id is a MessageBusError with code INVALID_CHANNEL."""
    return _named_channel(ChannelKind.WORKFLOW, workflow_id)


def task_channel(task_id: str) -> str:
    """Name the channel of one task's progress; a bad id is a MessageBusError with code INVALID_CHANNEL."""
    return _named_channel(ChannelKind.TASK, task_id)


def kind_of(channel: str) -> ChannelKind:
    """Tell what a channel, or a pattern of channels, is for; OTHER where that is not one thing."""
    if channel in _FIXED:
        return _FIXED[channel]
    for start, kind in _STARTS.items():
        if channel.startswith(start):
            return kind
    return ChannelKind.OTHER


def parse_channel(channel: str) -> Channel:
    """Take a channel apart; `str()` of what comes back is `channel` again.

    A bad channel, or a bad id in one of ours, is a MessageBusError with code INVALID_CHANNEL.
    """
    validate_channel(channel)
    kind = kind_of(channel)
    if kind is ChannelKind.OTHER:
        return Channel(kind, channel)
    if channel in _FIXED:
        return Channel(kind)
    name = channel.removeprefix(f"{PREFIX}:{kind.value}:")
    validate_name(name, kind)
    return Channel(kind, name)


def validate_name(name: str, kind: ChannelKind = ChannelKind.AGENT) -> None:
    """Refuse an id or name that no channel can be made of: MessageBusError, code INVALID_CHANNEL."""
    what = f"{kind.value} name" if kind is ChannelKind.PHASE else f"{kind.value} id"
    if not isinstance(name, str):
        raise _invalid(what, name, "it is not text")
    if not name:
        raise _invalid(what, name, "it is empty")
    if len(name) > MAX_NAME_CHARACTERS:
        raise _invalid(
            what, name, f"it has {len(name)} characters, at most {MAX_NAME_CHARACTERS} are allowed"
        )
    found = _NOT_IN_A_NAME.search(name)
    if found:
        raise _invalid(what, name, f"{found.group()!r} is not allowed; use letters, digits, '-', '_' and '.'")
    size, limit = len(name.encode()), MAX_CHANNEL_BYTES - len(f"{PREFIX}:{kind.value}:")
    if size > limit:
        raise _invalid(what, name, f"it has {size} bytes, at most {limit} are allowed")


def validate_group(group: str) -> None:
    """Refuse a name that no group can have, by the rules for ids: MessageBusError, code INVALID_GROUP."""
    try:
        validate_name(group)
    except MessageBusError as error:
        message = error.message.replace("agent id", "group name", 1)
        raise MessageBusError(message, "INVALID_GROUP", error.details) from None


def validate_channel(channel: str) -> None:
    """Refuse a name that nothing can be published to: MessageBusError, code INVALID_CHANNEL."""
    _validate_text("channel", channel)
    if "*" in channel:
        raise _invalid("channel", channel, "'*' is allowed only in a pattern to subscribe to")


def validate_pattern(pattern: str) -> None:
    """Refuse what cannot be subscribed to (every channel can): MessageBusError, code INVALID_CHANNEL."""
    _validate_text("channel pattern", pattern)


def is_pattern(text: str) -> bool:
    """Tell whether `text` stands for more than one channel."""
    return "*" in text


def matches(pattern: str, channel: str) -> bool:
    """Tell whether `channel` is one of those `pattern` stands for."""
    return compile_pattern(pattern)(channel)


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> PatternMatcher:
    """Prepare `pattern` for being matched often; a bad one is a MessageBusError with code INVALID_CHANNEL."""
    validate_pattern(pattern)
    head, *rest = pattern.split("*")
    if not rest:
        return PatternMatcher(head, None, ())
    return PatternMatcher(head, rest[-1], tuple(part for part in rest[:-1] if part))


@dataclass(frozen=True, slots=True)
class PatternMatcher:
    """A pattern ready to match: "*" is any characters, also none, and nothing else is special.

    Its time is linear in the channel's length whatever the pattern, which a regular expression's is not.
    """

    head: str
    tail: str | None
    middle: tuple[str, ...]

    def __call__(self, channel: str) -> bool:
        """Tell whether `channel` matches."""
        if self.tail is None:
            return channel == self.head
        end = len(channel) - len(self.tail)
        position = len(self.head)
        if end < position or not channel.startswith(self.head) or not channel.endswith(self.tail):
            return False
        for part in self.middle:
            found = channel.find(part, position, end)
            if found < 0:
                return False
            position = found + len(part)
        return True


def _named_channel(kind: ChannelKind, name: str) -> str:
    validate_name(name, kind)
    return f"{PREFIX}:{kind.value}:{name}"


def _validate_text(what: str, text: str) -> None:
    if not isinstance(text, str):
        raise _invalid(what, text, "it is not text")
    if not text:
        raise _invalid(what, text, "it is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _invalid(what, text, "it cannot be written as UTF-8") from None
    if size > MAX_CHANNEL_BYTES:
        raise _invalid(what, text, f"it has {size} bytes, at most {MAX_CHANNEL_BYTES} are allowed")
    found = _BLANK_OR_CONTROL.search(text)
    if found:
        raise _invalid(what, text, f"{found.group()!r} is whitespace or a control character")


def _invalid(what: str, value: object, reason: str) -> MessageBusError:
    shown = value if isinstance(value, str) else repr(value)
    return MessageBusError(
        f"The {what} {value!r} is not usable: {reason}.", "INVALID_CHANNEL", {"value": shown}
    )
