"""Log records as lines of JSON or text."""

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest
import structlog

from conductor.core.log_ids import TaskIds, bound_ids, current_ids, message_ids
from conductor.core.log_lines import LineFormatter, as_text
from conductor.core.urls import mask_text


def record(message: object, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("some.logger").makeRecord(
        "some.logger", logging.ERROR, "file", 1, message, arguments, None, extra=extra
    )


def as_json(record: logging.LogRecord) -> dict[str, Any]:
    line = LineFormatter("json").format(record)
    assert line.splitlines() == [line]
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_what_is_known_stands_first_and_what_is_given_after_it() -> None:
    with bound_ids({"task_id": "t", "workflow_id": None}), bound_ids({"agent_id": "a"}):
        found = as_json(record("%s of %d", "it", 5, color="red"))
    assert list(found) == [
        *["timestamp", "level", "logger", "event", "message_id", "task_id", "agent_id", "workflow_id"],
        *["process", "color"],
    ]
    assert found["event"] == "it of 5"
    assert (found["message_id"], found["task_id"], found["agent_id"]) == (None, "t", "a")
    assert current_ids() == {}


@pytest.mark.parametrize("name", ["timestamp", "level", "logger", "event"])
def test_what_is_given_forges_nothing(name: str) -> None:
    found = as_json(record("true", **{name: "forged"}))
    assert found[name] != "forged"
    assert found[f"{name}_"] == "forged"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        Unprintable(),
        {1: {2: object()}},
        "\ud800",
        b"\xff",
        {3, 4},
        "\u2028\x85\n",
    ],
)
def test_every_value_becomes_json(value: object) -> None:
    assert "value" in as_json(record("it", value=value))
    endless: list[object] = [value]
    endless.append(endless)
    assert "value" in as_json(record(str(value) if isinstance(value, str) else "it", value=endless))


def test_a_text_that_does_not_fit_its_arguments_is_written_all_the_same() -> None:
    assert as_json(record("%d and %d", "x"))["event"] == "%d and %d ('x',)"


PASSWORD = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}@host:1/0",
        f"amqp://me:{PASSWORD}@host//x",
        f"amqp://me:{PASSWORD}/@with@signs@host",
        f"redis://host/0?a=b&Password={PASSWORD}&c=d",
        f"sentinel://a:{PASSWORD}@h1;sentinel://b:{PASSWORD}@h2",
    ],
)
@pytest.mark.parametrize("style", ["json", "console"])
def test_passwords_in_urls_are_masked_wherever_they_are(url: str, style: Any) -> None:
    written = record(
        "connecting to %s now", url, where=url, deep={"a": [url, {url: 1}]}, what=ValueError(url)
    )
    try:
        try:
            raise ValueError(url)
        except ValueError as error:
            raise RuntimeError(f"because of '{url}', it seems") from error
    except RuntimeError:
        written.exc_info = sys.exc_info()
    line = LineFormatter(style).format(written)
    assert PASSWORD not in line
    assert "host" in line or "h1" in line
    assert "***" in line


def test_texts_without_passwords_stay_as_they_are() -> None:
    for text in (
        "mail me@example.com",
        "http://host/path?q=a@b and x@y",
        "12:30 at http://h:1/",
        "a://b://c:d",
    ):
        assert mask_text(text) == text


def test_text_for_a_person_keeps_its_line_and_its_terminal() -> None:
    with bound_ids({"task_id": "t\n2026 [error] forged\x1b[2J"}):
        line = LineFormatter("console").format(record("first\nsecond\x1b]0;title\x07"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "first\\nsecond" in line


def test_a_stack_trace_follows_indented() -> None:
    failure = record("it failed")
    try:
        raise ValueError("bad\n2026 [error] forged")
    except ValueError:
        failure.exc_info = sys.exc_info()
    for text in (LineFormatter("console").format(failure), as_text(LineFormatter("json").format(failure))):
        first, *others = text.splitlines()
        assert "it failed" in first
        assert others[-1] == "    2026 [error] forged"
        assert all(line.startswith("    ") for line in others)


def test_a_line_that_is_no_json_stays_as_it_is() -> None:
    for line in ("", "text", "[1]", '{"a": 1}', "{"):
        assert as_text(line) == line


async def test_ids_follow_tasks_and_threads_but_nobody_else() -> None:
    async def both() -> tuple[dict[str, str], dict[str, str]]:
        return current_ids(), await asyncio.to_thread(current_ids)

    with bound_ids({"task_id": "t"}):
        inside = asyncio.create_task(both())
    outside = asyncio.create_task(both())
    assert await inside == ({"task_id": "t"}, {"task_id": "t"})
    assert await outside == ({}, {})


def test_our_formatter_does_not_repeat_the_ids_that_a_filter_put_before_the_text() -> None:
    written = record("100 %% of %s", "it")
    with bound_ids({"task_id": "t"}):
        assert TaskIds().filter(written)
    assert written.getMessage() == "[task t] 100 % of it"
    assert as_json(written)["event"] == "100 % of it"


@pytest.mark.parametrize("body", ['{"message_id": "m", "payload": {"grüße": [1, 2', '{"message_id":"m"}'])
def test_the_id_of_a_message_is_read_also_where_it_is_large_or_damaged(body: str) -> None:
    for text in (body, body.encode(), body + "ü" * 1_000_000, (body + "ü" * 1_000_000).encode()):
        assert message_ids(text).get("message_id") in ("m", None)
    assert message_ids(body) == message_ids(body.encode()) == {"message_id": "m"}


@pytest.mark.parametrize(
    "body", [None, 5, b"\xff", "", "[", '"m"', '{"message_id": 5}', "{" * 5000, "\ud800"]
)
def test_what_names_no_message_gives_no_id(body: object) -> None:
    assert not any(message_ids(body).values())


SCRIPT = """
import logging, sys
import conductor
from conductor.core.log_ids import bound_ids
assert not logging.getLogger().handlers
conductor.configure_logging("info", *sys.argv[1:])
import structlog
with bound_ids({"task_id": "t-1"}):
    logging.getLogger("a").info("from %s", "logging")
    structlog.get_logger("b").info("from structlog", answer=42)
logging.getLogger("a").debug("not to be seen")
"""


def run(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_program_that_asks_for_it_writes_json_to_a_pipe() -> None:
    first, second = map(json.loads, run())
    assert (first["event"], first["task_id"], first["logger"]) == ("from logging", "t-1", "a")
    assert (second["event"], second["task_id"], second["answer"]) == ("from structlog", "t-1", 42)
    assert "answer=42" in run("console")[1]


def test_a_wrong_format_is_told() -> None:
    from conductor import configure_logging

    before = structlog.get_config()
    with pytest.raises(ValueError, match="'auto', 'json' or 'console', not 'xml'"):
        configure_logging("INFO", "xml")  # type: ignore[arg-type]
    assert structlog.get_config() == before
