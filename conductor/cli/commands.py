"""The commands and their options; what they do is elsewhere."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from conductor.cli import dead_letter_commands, looking_commands, watching_commands
from conductor.cli.execution import Settings, execute
from conductor.cli.metrics import export, with_port
from conductor.cli.options import Json
from conductor.cli.output import Output
from conductor.cli.values import absolute_paths, parse_object, parse_pairs
from conductor.core.channels import ChannelKind, validate_name
from conductor.core.enums import AgentType, MessageType, Priority
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Durable work for asyncio agents on Celery, Redis and RabbitMQ. "
    "Exit codes: 0 done, 1 the work failed, 2 wrong use, 130 interrupted.",
)
app.add_typer(dead_letter_commands.app, name="dlq", rich_help_panel=looking_commands.PANEL)
app.add_typer(looking_commands.app)
app.add_typer(watching_commands.app)

Type = Annotated[MessageType, typer.Option("--type", "-t", help="The message's type.")]
Payload = Annotated[
    str,
    typer.Option(
        help="The message's payload, a JSON object; - reads it from standard input. That of a task is "
        '{"task": {"name": "look", "assigned_to": "review", "input_data": {"project": "/absolute/path"}}}.'
    ),
]
Sender = Annotated[str, typer.Option(help="Who sends it.")]
Recipient = Annotated[
    str | None, typer.Option(help="The id of who it is for; nobody in particular by default.")
]
Correlation = Annotated[str | None, typer.Option(help="The correlation id, which answers carry too.")]
Urgency = Annotated[Priority, typer.Option(help="How urgent it is.")]
Channel = Annotated[str, typer.Argument(help="For example conductor:broadcast or conductor:agent:coding-1.")]

WorkflowId = Annotated[str, typer.Argument(help="The id that 'conductor run' says when it starts.")]


def _complete_agents(incomplete: str) -> list[str]:
    return [kind.value for kind in AgentType if kind.value.startswith(incomplete)]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"conductor {metadata.version('conductorai')}")
        raise typer.Exit


def _usable_run_id(run_id: str | None) -> str | None:
    """Refuse an id that no channel and no directory below the workspaces can be called."""
    if run_id is None:
        return None
    try:
        validate_name(run_id, ChannelKind.WORKFLOW)
    except MessageBusError as error:
        raise typer.BadParameter(error.message) from None
    if "/" in run_id or run_id.startswith("."):
        raise typer.BadParameter(f"{run_id!r} is the name of a directory too: no '/', and no '.' in front")
    return run_id


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The configuration file; default: ./conductor.yaml.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show logs, also of nodes, and stack traces.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Keep what is said before the command's name."""
    context.obj = Settings(config, verbose)


@app.command()
def up(
    context: typer.Context,
    agents: Annotated[
        str | None,
        typer.Option(
            help="Agents to start, with commas: names, or package.module:Class. Default: all there are.",
            autocompletion=_complete_agents,
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="How many of each.")] = 1,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Serve Prometheus the metrics of all of it, at /metrics of this port; 0 is any free one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start agent nodes, and a server if none is configured; Ctrl-C stops all."""
    from conductor.cli.serving import Service

    chosen = [name.strip() for name in (agents or "").split(",") if name.strip()]
    if agents is not None and not chosen:
        raise typer.BadParameter("it names no agent; leave it out to start all", param_hint="--agents")
    settings: Settings = context.obj
    output = Output(as_json=as_json)
    execute(
        settings,
        lambda config: Service(
            with_port(config, metrics_port), chosen, count, output, verbose=settings.verbose
        ).run(),
        ends_with_signal=True,
    )


@app.command(rich_help_panel=looking_commands.PANEL)
def metrics(
    context: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port; default: metrics.port, else 9464. 0 is any free one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve Prometheus queues, breakers and agents, where no 'conductor up' does; Ctrl-C ends it."""
    output = Output(as_json=as_json)
    execute(context.obj, lambda config: export(with_port(config, port), output), ends_with_signal=True)


@app.command()
def run(
    context: typer.Context,
    workflow: Annotated[Path, typer.Argument(help="The workflow, a YAML file.")],
    pairs: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a variable of the workflow; may be repeated."),
    ] = None,
    stop_on_failure: Annotated[
        bool, typer.Option("--stop-on-failure", help="Do nothing more after a task that failed.")
    ] = False,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            callback=_usable_run_id,
            help="The run's id. A run of this id goes on where it was; one that has ended is shown as it is.",
        ),
    ] = None,
    max_feedback_loops: Annotated[
        int, typer.Option(min=0, metavar="N", help="How often monitors may send the workflow back.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Run a workflow; starts what is missing for as long as it runs."""
    from conductor.cli.running import WorkflowRun
    from conductor.cli.workflow_file import load_workflow

    settings: Settings = context.obj
    given = parse_pairs(pairs or [], "--set")
    output = Output(as_json=as_json)
    execute(
        settings,
        lambda config: WorkflowRun(
            config,
            output,
            workflow=load_workflow(workflow, given, config.data_dir / "workspaces", run_id),
            run_id=run_id or "",
            verbose=settings.verbose,
            stop_on_failure=stop_on_failure,
            max_feedback_loops=max_feedback_loops,
        ).run(),
    )


@app.command()
def resume(context: typer.Context, workflow_id: WorkflowId, as_json: Json = False) -> None:
    """Go on with a run whose process died; starts what is missing for as long as it runs."""
    from conductor.cli.running import WorkflowRun

    settings: Settings = context.obj
    output = Output(as_json=as_json)
    execute(
        settings,
        lambda config: WorkflowRun(config, output, run_id=workflow_id, verbose=settings.verbose).run(),
    )


@app.command()
def cancel(context: typer.Context, workflow_id: WorkflowId, as_json: Json = False) -> None:
    """End a run, also one of another process: what waits and what runs is cancelled, what is done kept."""
    from conductor.cli import running

    output = Output(as_json=as_json)
    execute(context.obj, lambda config: running.cancel(config, output, workflow_id))


@app.command()
def dispatch(
    context: typer.Context,
    agent_type: Annotated[
        AgentType | None, typer.Option("--type", "-t", help="For any agent of a type.")
    ] = None,
    agent: Annotated[str | None, typer.Option("--agent", "-a", metavar="ID", help="For one agent.")] = None,
    name: Annotated[str | None, typer.Option(help="The task's name.")] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="KEY=VALUE", help="Input for the task; may be repeated."),
    ] = None,
    input_json: Annotated[
        str, typer.Option(metavar="JSON", help="Input for the task, a JSON object.")
    ] = "{}",
    timeout: Annotated[int, typer.Option(min=1, max=3600, help="Seconds the task may take.")] = 120,
    priority: Urgency = Priority.MEDIUM,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Queue the task and leave.")] = False,
    policy_wait: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Wait so long for policies that deny it to allow it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Give one task to an agent that runs, and wait for its result."""
    from conductor.cli import talking

    if agent_type is None and agent is None:
        raise typer.BadParameter("say for whom the task is: --type TYPE or --agent ID", param_hint="--type")
    data = parse_object(input_json, "--input-json") | parse_pairs(pairs or [], "--input")
    task = TaskDefinition(
        name=name or f"{agent_type or agent} task",
        assigned_to=agent_type,
        priority=priority,
        input_data=absolute_paths(data, Path.cwd()),
        timeout_seconds=timeout,
    )
    output = Output(as_json=as_json)
    execute(
        context.obj,
        lambda config: talking.dispatch(
            config, output, task, agent, wait=not no_wait, policy_wait=policy_wait
        ),
    )


@app.command()
def publish(
    context: typer.Context,
    channel: Channel,
    message_type: Type = MessageType.STATUS_UPDATE,
    payload: Payload = "{}",
    sender: Sender = "cli",
    recipient: Recipient = None,
    correlation_id: Correlation = None,
    priority: Urgency = Priority.MEDIUM,
    ttl: Annotated[int | None, typer.Option(min=1, help="Seconds after which nobody shall get it.")] = None,
    as_json: Json = False,
) -> None:
    """Publish a message to everyone who listens."""
    from conductor.cli import talking

    message = _message(
        payload,
        message_type=message_type,
        sender_id=sender,
        recipient_id=recipient,
        correlation_id=correlation_id,
        priority=priority,
        ttl_seconds=ttl,
    )
    execute(context.obj, lambda config: talking.publish(config, Output(as_json=as_json), channel, message))


@app.command()
def request(
    context: typer.Context,
    channel: Channel,
    message_type: Type = MessageType.TASK_ASSIGNMENT,
    payload: Payload = "{}",
    sender: Sender = "cli",
    recipient: Recipient = None,
    correlation_id: Correlation = None,
    priority: Urgency = Priority.MEDIUM,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Send a message and show the answer."""
    from conductor.cli import talking

    message = _message(
        payload,
        message_type=message_type,
        sender_id=sender,
        recipient_id=recipient,
        correlation_id=correlation_id,
        priority=priority,
    )
    output = Output(as_json=as_json, verbose=context.obj.verbose)
    execute(context.obj, lambda config: talking.request(config, output, channel, message, timeout))


@app.command()
def listen(
    context: typer.Context,
    patterns: Annotated[
        list[str], typer.Argument(help="Channels; * stands for any characters: 'conductor:*'.")
    ],
    count: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="End after so many seconds.")] = None,
    as_json: Json = False,
) -> None:
    """Show messages as they come, with --json one a line; Ctrl-C ends it."""
    from conductor.cli import talking

    output = Output(as_json=as_json, verbose=context.obj.verbose)
    execute(
        context.obj,
        lambda config: talking.listen(config, output, patterns, count, timeout),
        ends_with_signal=True,
    )


def _message(payload: str, **fields: Any) -> AgentMessage:
    text = sys.stdin.read() if payload == "-" else payload
    try:
        return AgentMessage(payload=parse_object(text, "--payload"), **fields)
    except ValidationError as error:
        problem = error.errors()[0]
        option = f"--{str(problem['loc'][0]).removesuffix('_id')}"
        raise typer.BadParameter(f"{problem['input']!r}: {problem['msg']}", param_hint=option) from None
