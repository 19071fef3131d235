"""`conductor top`: rates, latencies, queues and agents, as they are and again every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from conductor.broker.addresses import find_addresses
from conductor.broker.app import create_app
from conductor.broker.overview import look_around
from conductor.broker.task_events import WINDOW, TaskEvents
from conductor.cli.status import PROBLEM_STYLE, agent_data, agents_of, queues_table
from conductor.cli.views import View, table_of, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from conductor.broker.addresses import Addresses
    from conductor.broker.overview import Overview
    from conductor.broker.task_events import Figures
    from conductor.cli.output import Output
    from conductor.core.config import ConductorConfig


async def show_top(config: ConductorConfig, output: Output, interval: float, *, once: bool) -> int:
    """Show a screen until q is pressed, or where there is no terminal a snapshot after every interval."""
    addresses = await asyncio.to_thread(find_addresses, config)
    events = TaskEvents(create_app(config, addresses=addresses, set_as_current=False))
    events.start()
    try:
        if once or output.as_json or not output.is_narrow:
            while True:
                await asyncio.sleep(interval)
                view = await _look(config, addresses, events, narrow=output.is_narrow)
                write(output, view)
                if once:
                    return view.code
        await _screen(config, addresses, events, output, interval)
        return 0
    finally:
        await asyncio.to_thread(events.stop)


async def _screen(
    config: ConductorConfig, addresses: Addresses, events: TaskEvents, output: Output, interval: float
) -> None:
    with _keys() as pressed, Live(console=output.human, screen=True, auto_refresh=False) as live:
        while not pressed.is_set():
            view = await _look(config, addresses, events, narrow=True)
            hint = Text(f"\nevery {interval:g} s; q ends it", "dim")
            live.update(Group(*view.parts, hint), refresh=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await pressed.wait()


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """Tell when q is pressed; the terminal is as it was afterwards."""
    loop, pressed = asyncio.get_running_loop(), asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def read() -> None:
        if os.read(keyboard, 1) in (b"q", b"Q", b""):
            pressed.set()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


async def _look(config: ConductorConfig, addresses: Addresses, events: TaskEvents, *, narrow: bool) -> View:
    overview = await look_around(config, addresses)
    figures, problems = events.figures(), overview.problems()
    heard = events.error is None and overview.broker.error is None
    if events.error is not None and overview.broker.error is None:
        problems.append(f"events of tasks are not heard: {events.error}")
    agents = [(agent, overview.lives(agent)) for agent in overview.agents]
    loads = {agent.agent_id: events.load_of(agent.agent_id) for agent, alive in agents if alive}
    data: dict[str, Any] = {
        "window_seconds": WINDOW,
        "tasks_per_second": {name: round(rate, 3) if heard else None for name, rate in figures.rates.items()},
        "wait_seconds": figures.waited,
        "run_seconds": figures.ran,
        "queues": [{"name": queue.name, "ready": queue.ready} for queue in overview.queues],
        "agents": [agent_data(a, alive) | {"load": loads.get(a.agent_id)} for a, alive in agents],
        "breakers": {kind.value: state.value for kind, state in overview.breakers.items()},
        "problems": problems,
    }
    parts: list[Table | Text] = [Text(text, PROBLEM_STYLE) for text in problems]
    parts += [_figures_table(figures, heard=heard), Text(), *_parts(overview, narrow=narrow)]
    return View(data, parts, int(bool(problems)))


def _parts(overview: Overview, *, narrow: bool) -> list[Table | Text]:
    parts: list[Table | Text] = []
    if overview.queues:
        parts += [queues_table(sorted(overview.queues, key=lambda queue: -queue.ready)), Text()]
    if overview.agents:
        parts += [agents_of(overview, narrow=narrow), Text()]
    parts += [Text(f"breaker of {kind.value}: {state.value}") for kind, state in overview.breakers.items()]
    return parts


def _figures_table(figures: Figures, *, heard: bool) -> Table:
    """Show figures; there are no rates while nothing is heard of the nodes."""
    table = table_of("tasks", "per second", "latency", "p50", "p95", right=("per second", "p50", "p95"))
    latencies = [("waited", figures.waited), ("ran", figures.ran)]
    for number, (name, rate) in enumerate(figures.rates.items()):
        label, values = latencies[number] if number < len(latencies) else ("", {})
        shown = [_seconds(values[key]) if values else "" for key in ("p50", "p95")]
        table.add_row(name, f"{rate:.2f}" if heard else "-", label, *shown)
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"
