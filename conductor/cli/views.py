"""What a command shows once, or again and again."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conductor.broker.dead_letter_queue import SHORT_ID
from conductor.cli.execution import FAILED
from conductor.cli.output import ERROR_STYLE, Output
from conductor.core.exceptions import ConductorError

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class View:
    """One look: for a program, for a person, and the exit code it stands for."""

    data: Any
    parts: Sequence[Table | Text]
    code: int = 0


Look = Callable[[], Awaitable[View]]


async def present(output: Output, look: Look, every: float | None) -> int:
    """Look once and give the exit code, or every so many seconds until a signal comes.

    Again and again, a server that goes away is shown, and looked for again; JSON is one line for each look.
    """
    if every is None:
        view = await look()
        write(output, view, indent=2)
        return view.code
    if output.is_narrow and not output.as_json:
        with Live(console=output.human, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_whole(await _tried(look), every), refresh=True)
                await asyncio.sleep(every)
    while True:
        view = await _tried(look)
        write(output, view)
        if not output.as_json:
            output.say()
        await asyncio.sleep(every)


async def _tried(look: Look) -> View:
    try:
        return await look()
    except ConductorError as error:
        text = Text.assemble(("error: ", ERROR_STYLE), error.message)
        return View({"error": error.message, "error_code": error.error_code}, [text], FAILED)


def write(output: Output, view: View, indent: int | None = None) -> None:
    """Write a look as JSON, or as text."""
    output.emit(view.data, indent=indent)
    if output.as_json:
        return
    for part in view.parts:
        if isinstance(part, Table):
            output.show(part)
        else:
            output.say(part)


def _whole(view: View, every: float) -> RenderableType:
    return Group(*view.parts, Text(f"\nevery {every:g} s; Ctrl-C ends it", "dim"))


def table_of(*columns: str, right: tuple[str, ...] = (), cut: tuple[str, ...] = ()) -> Table:
    """Make an empty table like all others; where there are columns to `cut`, only they become narrower."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        header = cut_text(name) if name in cut else name
        justify: Literal["left", "right"] = "right" if name in right else "left"
        table.add_column(header, justify=justify, overflow="fold", no_wrap=bool(cut) and name not in cut)
    return table


def cut_text(text: str) -> Text:
    """One line, cut where it has to be: rich makes columns narrower only if they may wrap."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


def brief(some_id: str, *, narrow: bool) -> str:
    """The beginning of an id, by which commands find it, where the whole is long and says nothing."""
    return some_id[:SHORT_ID] if narrow and _UUID.fullmatch(some_id) else some_id
