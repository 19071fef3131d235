"""The commands that look at what runs and change nothing, and their options; what they do is elsewhere."""

from typing import Annotated

import typer

from conductor.cli.execution import Settings, execute
from conductor.cli.looking_commands import PANEL
from conductor.cli.options import Json
from conductor.cli.output import Output
from conductor.core.config import load_config
from conductor.core.exceptions import ConfigurationError

app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check versions, settings, servers, rights, clocks and nodes, and say what to do.

    The exit code is 1 where something is a problem or cannot be reached.
    """
    from conductor.cli.doctor import examination

    settings: Settings = context.obj
    output = Output(as_json=as_json)
    try:
        load_config(settings.config_file)
    except (ConfigurationError, FileNotFoundError) as error:
        raise typer.Exit(examination.refuse(error, output)) from None
    execute(settings, lambda config: examination.examine(config, settings.config_file, output))


@app.command(rich_help_panel=PANEL)
def top(
    context: typer.Context,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Look again every so often.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one snapshot, after one interval.")] = False,
    as_json: Json = False,
) -> None:
    """Show rates, latencies, queues and agents live; q or Ctrl-C ends it.

    Without a terminal, and with --json, it writes a snapshot after every interval.
    """
    from conductor.cli.top import show_top

    output = Output(as_json=as_json)
    execute(
        context.obj,
        lambda config: show_top(config, output, interval, once=once),
        ends_with_signal=True,
    )
