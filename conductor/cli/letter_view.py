"""Dead letters as a person reads them."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from conductor.broker.dead_letter_queue import SHORT_ID
from conductor.cli.values import show_duration
from conductor.cli.views import cut_text
from conductor.core.dead_letters import DeadLetter
from conductor.core.fields import utc_now


def table_of(letters: Iterable[DeadLetter], *, narrow: bool) -> Table:
    """Make a table, a letter in each row; a narrow one has only the beginnings of ids."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in (("id", SHORT_ID), ("age", 3), ("reason", 17)):
        table.add_column(name, no_wrap=True, min_width=width)
    for name in ("task or message", "agent"):
        table.add_column(cut_text(name))
    table.add_column("tries", no_wrap=True, justify="right", min_width=5)
    table.add_column(cut_text("error"))
    for letter in letters:
        cells = (
            letter.letter_id[:SHORT_ID] if narrow else letter.letter_id,
            _age(letter.last_failed_at),
            letter.reason.value,
            _subject(letter),
            letter.agent_id or letter.agent_type or "-",
            str(letter.attempts),
            letter.error_message.strip() or letter.error_code,
        )
        table.add_row(*map(cut_text, cells))
    return table


def describe(letter: DeadLetter) -> Text:
    """Write down all that a person can read of a letter."""
    message = letter.error_message.removeprefix(f"{letter.error_type}: ")
    facts = {
        "id": letter.letter_id,
        "reason": letter.reason.value,
        "error": f"{letter.error_type} {letter.error_code}: {message}".strip(),
        "task": _named(letter.task_name, letter.task_id),
        "message": letter.message_id,
        "agent": _named(letter.agent_id, letter.agent_type),
        "workflow": letter.workflow_id,
        "tries": str(letter.attempts),
        "failed": f"{_time(letter.first_failed_at)} first, {_time(letter.last_failed_at)} last",
        "queue": letter.queue,
        "channel": letter.channel,
        "escalated": "yes, on conductor:errors" if letter.escalated else None,
    }
    text = Text()
    for name, value in facts.items():
        if value:
            text.append(f"{name:<11}", "bold").append(f"{value}\n")
    if letter.traceback:
        text.append("\ntraceback\n", "bold").append(f"{letter.traceback.rstrip()}\n")
    title, original = _original(letter)
    return text.append(f"\n{title}\n", "bold").append(original)


def _original(letter: DeadLetter) -> tuple[str, str]:
    if letter.body_encoding:
        return f"original message, in {letter.body_encoding}", letter.body
    try:
        data: Any = json.loads(letter.body)
    except ValueError:
        return "original message", letter.body
    if "task" in letter.headers and isinstance(data, list) and len(data) == 3 and data[0]:
        # Celery's body: arguments, keyword arguments, and what is to be done next.
        return "original task", _pretty(data[0][0])
    return "original message", _pretty(data)


def _subject(letter: DeadLetter) -> str:
    return letter.task_name or letter.task_id or letter.message_id or letter.channel or "-"


def _named(name: str | None, detail: str | None) -> str | None:
    return f"{name} ({detail})" if name and detail else name or detail


def _age(moment: datetime) -> str:
    return show_duration((utc_now() - moment).total_seconds())


def _time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({_age(moment)} ago)"


def _pretty(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)
