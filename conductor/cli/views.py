"""What a command shows once, or again and again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conductor.cli.execution import FAILED
from conductor.cli.output import ERROR_STYLE, Output
from conductor.core.exceptions import ConductorError


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


def table_of(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Make an empty table like all others."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table
