"""Log records as lines: a JSON object each for programs, text for a person at a terminal.

structlog renders what the standard library's logging collects; importing it takes a while, so this module is
imported where lines are set up, and nowhere else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Literal

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer

from conductor.core.log_ids import IDS, StandardError, current_ids
from conductor.core.secrets import scrub
from conductor.core.tracing import current_trace

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

Style = Literal["json", "console"]
Known = Callable[[logging.LogRecord], Mapping[str, Any]]
"""Gives what a process knows about a record beside what is bound where it is written."""

_OURS = ("timestamp", "level", "logger", "event")
_NO_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "log_prefix",
    # Celery's: reprs of arguments and results, which may be large and are nobody else's business.
    "data",
    # structlog's.
    "_logger",
    "_name",
    "_record",
    "_from_structlog",
}
_DEEPEST = 6
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_NEWLINE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_INDENT = "    "


class LineFormatter(ProcessorFormatter):
    """Writes a record as a line with its ids; passwords in URLs are masked, wherever they are in it.

    JSON is always one line, and neither an id nor a text can end it. As text, a stack trace follows indented.
    """

    def __init__(self, style: Style, *, colors: bool = False, known: Known | None = None) -> None:
        self.style = style
        self._known = known or (lambda _record: {})
        self._exceptions = ExceptionDictTransformer(show_locals=False)
        last = [_without_nulls, _sanitized, _renderer(colors)]
        super().__init__(
            processors=[
                self._fields,
                self._with_exception,
                _masked,
                *([JSONRenderer()] if style == "json" else last),
            ]
        )

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`; a text that does not fit its arguments is written as it is."""
        if not hasattr(record, "_logger"):
            record = logging.makeLogRecord(record.__dict__)
            record.msg, record.args = _text_of(record), ()
        return super().format(record)

    def _fields(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event["_record"]
        given = vars(record) if not event["_from_structlog"] else {**vars(record), **event}
        extra = {name: value for name, value in given.items() if name not in _NO_FIELDS}
        ids = {**self._known(record), **current_ids(), **current_trace()}
        ids |= {name: extra.pop(name) for name in IDS if extra.get(name) is not None}
        for name in (*_OURS, *ids):
            if name in extra and not (name == "event" and event["_from_structlog"]):
                extra[f"{name}_"] = extra.pop(name)
        extra.pop("event", None)
        return {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": str(event["event"]).removeprefix(getattr(record, "log_prefix", "")),
            **{name: ids.pop(name, None) for name in IDS},
            **ids,
            "process": record.processName,
            **extra,
            "exc_info": event.get("exc_info"),
            "stack": event.get("stack_info") or None,
        }

    def _with_exception(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        exc_info = _exc_info(event.pop("exc_info"))
        if exc_info is not None:
            event["exception"] = (
                self._exceptions(exc_info)
                if self.style == "json"
                else logging.Formatter().formatException(exc_info)
            )
        if event["stack"] is None:
            del event["stack"]
        return event


def configure_logging(level: str = "INFO", log_format: Literal["auto", "json", "console"] = "auto") -> None:
    """Have this program write its log lines to standard error, with the ids of messages, tasks and workflows.

    Importing Conductor never does that; a program that wants it calls this once, in its main thread. It
    replaces the handlers of the root logger, as `logging.basicConfig(force=True)`, and makes what
    `structlog.get_logger()` gives write the same lines. "auto" is text where standard error is a terminal,
    else JSON. ValueError for another level or format.
    """
    if log_format not in ("auto", "json", "console"):
        raise ValueError(f"log_format is 'auto', 'json' or 'console', not {log_format!r}")
    handler = StandardError()
    handler.setFormatter(formatter_for(log_format, sys.stderr))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    configure_structlog()


def formatter_for(log_format: str, stream: IO[str] | None, known: Known | None = None) -> LineFormatter:
    """Make the formatter for a stream: "auto" is text for a terminal, and JSON for all else."""
    terminal = is_terminal(stream)
    style: Style = "json" if log_format == "json" or (log_format == "auto" and not terminal) else "console"
    return LineFormatter(style, colors=terminal and "NO_COLOR" not in os.environ, known=known)


def configure_structlog() -> None:
    """Have structlog's own loggers write through logging, unless the program has configured structlog."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def as_text(line: str, *, colors: bool = False) -> str:
    """Write a line of JSON as text for a person; what is none stays as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict) or not {"timestamp", "level", "event"} <= fields.keys():
        return line
    if isinstance(exception := fields.get("exception"), list):
        fields["exception"] = "\n".join(map(_exception_in_words, reversed(exception)))
    return str(_renderer(colors)(None, "", _sanitized(None, "", _without_nulls(None, "", fields))))


def is_terminal(stream: IO[str] | None) -> bool:
    """Tell whether a person reads a stream."""
    return stream is not None and hasattr(stream, "isatty") and stream.isatty()


def _renderer(colors: bool) -> ConsoleRenderer:
    return ConsoleRenderer(
        colors=colors, pad_event_to=0, sort_keys=False, exception_formatter=plain_traceback
    )


def _text_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - whatever an argument raises
        return f"{_text(record.msg)} {_text(record.args)}"


def _exc_info(given: Any) -> Any:
    if given is True:
        given = sys.exc_info()
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return given if isinstance(given, tuple) and given[0] is not None else None


def _masked(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {str(name): _plain(value, 0) for name, value in event.items()}


def _plain(value: Any, depth: int) -> Any:
    """Give what JSON can write, without passwords."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, str):
        return scrub(value)
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {scrub(_text(name)): _plain(each, depth + 1) for name, each in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_plain(each, depth + 1) for each in value]
    return scrub(_text(value))


def _text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - whatever a __repr__ raises
        return f"<{type(value).__name__}>"


def _without_nulls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: value for name, value in event.items() if value is not None}


def _sanitized(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep texts in their line, and their control characters from the terminal."""
    kept = {name: _in_a_line(value) for name, value in event.items() if name not in ("exception", "stack")}
    for name in ("exception", "stack"):
        if name in event:
            text = _CONTROL_BUT_NEWLINE.sub(_escaped, str(event[name]).replace("\r\n", "\n"))
            kept[name] = _INDENT + text.replace("\n", f"\n{_INDENT}")
    return kept


def _in_a_line(value: Any) -> Any:
    return _CONTROL.sub(_escaped, value) if isinstance(value, str) else value


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _exception_in_words(exception: Any) -> str:
    if not isinstance(exception, dict):
        return str(exception)
    frames = [
        f'  File "{frame.get("filename")}", line {frame.get("lineno")}, in {frame.get("name")}'
        for frame in exception.get("frames") or []
        if isinstance(frame, dict)
    ]
    return "\n".join([*frames, f"{exception.get('exc_type')}: {exception.get('exc_value')}"])
