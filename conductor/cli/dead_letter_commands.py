"""The commands below `conductor dlq`, and their options; what they do is elsewhere."""

from typing import TYPE_CHECKING, Annotated

import typer

from conductor.cli.execution import execute
from conductor.cli.options import Json
from conductor.cli.output import Output
from conductor.cli.values import parse_duration
from conductor.core.dead_letters import DeadLetterReason

if TYPE_CHECKING:
    from conductor.cli.dead_letters import Choice

app = typer.Typer(no_args_is_help=True, help="Look at what nobody could do, replay it or delete it.")

Id = Annotated[
    str | None, typer.Argument(metavar="ID", help="The id of a dead letter, or of a task: its newest.")
]
Reason = Annotated[DeadLetterReason | None, typer.Option(help="Only what is dead for this reason.")]
Agent = Annotated[str | None, typer.Option(help="Only that of an agent, by its id or type.")]
Older = Annotated[
    float | None,
    typer.Option(
        metavar="TIME", parser=parse_duration, help="Only what failed before: 90s, 15m, 2h, 3d ago."
    ),
]
Newer = Annotated[
    float | None,
    typer.Option(metavar="TIME", parser=parse_duration, help="Only what failed within: 90s, 15m, 2h, 3d."),
]
All = Annotated[bool, typer.Option("--all", help="All there are.")]


@app.command("list")
def list_(
    context: typer.Context,
    reason: Reason = None,
    agent: Agent = None,
    older_than: Older = None,
    newer_than: Newer = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    as_json: Json = False,
) -> None:
    """List dead letters, the oldest first; nothing is taken away."""
    from conductor.cli import dead_letters

    choice = dead_letters.Choice(None, reason, agent, older_than, newer_than)
    output = Output(as_json=as_json)
    execute(context.obj, lambda config: dead_letters.show_list(config, output, choice, limit, offset))


@app.command()
def show(
    context: typer.Context,
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="The id of a dead letter, or of a task: its newest.")
    ],
    as_json: Json = False,
) -> None:
    """Show one dead letter: why it is dead, and the original message."""
    from conductor.cli import dead_letters

    output = Output(as_json=as_json)
    execute(context.obj, lambda config: dead_letters.show_one(config, output, letter_id))


@app.command()
def replay(
    context: typer.Context,
    letter_id: Id = None,
    reason: Reason = None,
    agent: Agent = None,
    older_than: Older = None,
    newer_than: Newer = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """Send dead letters back to the queues they came from; tasks begin anew under their ids."""
    from conductor.cli import dead_letters

    choice = dead_letters.Choice(letter_id, reason, agent, older_than, newer_than)
    _check(choice, everything=everything)
    output = Output(as_json=as_json)
    execute(context.obj, lambda config: dead_letters.replay(config, output, choice))


@app.command()
def purge(
    context: typer.Context,
    letter_id: Id = None,
    reason: Reason = None,
    agent: Agent = None,
    older_than: Older = None,
    newer_than: Newer = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before deleting several.")] = False,
    as_json: Json = False,
) -> None:
    """Delete dead letters for good."""
    from conductor.cli import dead_letters

    choice = dead_letters.Choice(letter_id, reason, agent, older_than, newer_than)
    _check(choice, everything=everything)
    output = Output(as_json=as_json)
    execute(context.obj, lambda config: dead_letters.purge(config, output, choice, sure=yes))


def _check(choice: "Choice", *, everything: bool) -> None:
    if choice.is_open and not everything:
        raise typer.BadParameter("say which: an ID, a filter such as --reason, or --all", param_hint="ID")
    if choice.letter_id is not None and everything:
        raise typer.BadParameter("give an ID or --all, not both", param_hint="--all")
