"""The commands that look and change nothing, and their options; what they do is elsewhere."""

from typing import Annotated

import typer

from conductor.cli.execution import execute
from conductor.cli.options import Json
from conductor.cli.output import Output
from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase

PANEL = "Look"

app = typer.Typer()

Watch = Annotated[
    float | None,
    typer.Option(
        "--watch", "-w", min=0.1, metavar="SECONDS", help="Look again every so often; Ctrl-C ends it."
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="How many to show.")]
Offset = Annotated[int, typer.Option(min=0, help="How many to pass over.")]


@app.command(rich_help_panel=PANEL)
def status(
    context: typer.Context,
    watch: Watch = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings as well.")] = False,
    as_json: Json = False,
) -> None:
    """Show servers, agents, queues and dead letters; the exit code is 0 if nothing is wrong, else 1."""
    from conductor.cli.status import show_status

    output = Output(as_json=as_json)
    execute(
        context.obj,
        lambda config: show_status(config, output, watch, strict=strict),
        ends_with_signal=watch is not None,
    )


@app.command(rich_help_panel=PANEL)
def agents(
    context: typer.Context,
    agent_type: Annotated[AgentType | None, typer.Option("--type", "-t", help="Only of a type.")] = None,
    agent_status: Annotated[AgentStatus | None, typer.Option("--status", help="Only of a status.")] = None,
    alive: Annotated[bool, typer.Option("--alive", help="Only those with a heartbeat lately.")] = False,
    watch: Watch = None,
    as_json: Json = False,
) -> None:
    """List agents: what they do, and when they gave their last heartbeat."""
    from conductor.cli.listing import list_agents

    output = Output(as_json=as_json)
    execute(
        context.obj,
        lambda config: list_agents(config, output, watch, agent_type, agent_status, only_alive=alive),
        ends_with_signal=watch is not None,
    )


@app.command(rich_help_panel=PANEL)
def workflows(
    context: typer.Context,
    workflow_status: Annotated[TaskStatus | None, typer.Option("--status", help="Only of a status.")] = None,
    phase: Annotated[WorkflowPhase | None, typer.Option(help="Only those in a phase.")] = None,
    limit: Limit = 20,
    offset: Offset = 0,
    watch: Watch = None,
    as_json: Json = False,
) -> None:
    """List workflow runs, the newest first."""
    from conductor.cli.listing import Page, list_workflows

    output, page = Output(as_json=as_json), Page(limit, offset)
    execute(
        context.obj,
        lambda config: list_workflows(config, output, watch, workflow_status, phase, page),
        ends_with_signal=watch is not None,
    )


@app.command(rich_help_panel=PANEL)
def tasks(
    context: typer.Context,
    task_status: Annotated[
        TaskStatus | None, typer.Option("--status", help="Only of a status; pending ones wait in a queue.")
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only of an agent, or for an agent or a type."),
    ] = None,
    workflow: Annotated[str | None, typer.Option(metavar="ID", help="Only those of a workflow.")] = None,
    limit: Limit = 20,
    offset: Offset = 0,
    watch: Watch = None,
    as_json: Json = False,
) -> None:
    """List tasks: those that run, those that wait, then those that ended, the newest first."""
    from conductor.cli.listing import Page, Wanted, list_tasks

    output, wanted = Output(as_json=as_json), Wanted(task_status, agent, workflow, Page(limit, offset))
    execute(
        context.obj,
        lambda config: list_tasks(config, output, watch, wanted),
        ends_with_signal=watch is not None,
    )


@app.command(rich_help_panel=PANEL)
def show(
    context: typer.Context,
    some_id: Annotated[
        str, typer.Argument(metavar="ID", help="An id, or its first eight characters or more.")
    ],
    watch: Watch = None,
    as_json: Json = False,
) -> None:
    """Show all that is known of an agent, a workflow, a task or a dead letter."""
    from conductor.cli.showing import show as show_id

    output = Output(as_json=as_json)
    execute(
        context.obj,
        lambda config: show_id(config, output, some_id, watch),
        ends_with_signal=watch is not None,
    )


@app.command(rich_help_panel=PANEL)
def logs(
    context: typer.Context,
    workflow_id: Annotated[
        str, typer.Argument(metavar="WORKFLOW_ID", help="A run's id, or eight characters of it.")
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Show what happened in a workflow run, with --follow also what happens."""
    from conductor.cli.workflow_log import show_log

    output = Output(as_json=as_json)
    execute(
        context.obj,
        lambda config: show_log(config, output, workflow_id, follow=follow),
        ends_with_signal=follow,
    )


@app.command(
    rich_help_panel=PANEL, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def flower(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 5555,
    address: Annotated[str, typer.Option(help="The address it listens on.")] = "127.0.0.1",
    basic_auth: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", envvar="FLOWER_BASIC_AUTH", help="Who may look, with commas."),
    ] = None,
) -> None:
    """Start Flower, Celery's web monitor; further options are handed to it."""
    from conductor.cli.flower import run_flower

    output, more = Output(), list(context.args)
    execute(context.obj, lambda config: run_flower(config, output, address, port, basic_auth, more))
