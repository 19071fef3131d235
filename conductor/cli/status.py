"""`conductor status`: whether everything is there, and what goes on."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from conductor.broker.addresses import find_addresses, uses_embedded
from conductor.broker.liveness import heartbeat_age
from conductor.broker.overview import Overview, Server, look_around
from conductor.broker.queue_depths import QueueDepth
from conductor.cli.execution import FAILED
from conductor.cli.output import Output
from conductor.cli.servers import NOTHING_THERE
from conductor.cli.views import View, brief, present, table_of
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConfigurationError
from conductor.core.state import AgentState

PROBLEM_STYLE, WARNING_STYLE, FINE_STYLE = "bold red", "yellow", "green"


async def show_status(config: ConductorConfig, output: Output, every: float | None, *, strict: bool) -> int:
    """Show it; 0 if nothing is wrong, 1 if something is, or with `strict` if there is a warning."""

    async def look() -> View:
        try:
            addresses = find_addresses(config)
        except ConfigurationError as error:
            if error.error_code not in NOTHING_THERE:
                raise
            return _nothing(error.message)
        overview = await look_around(config, addresses)
        return _view(config, overview, narrow=output.is_narrow, strict=strict)

    return await present(output, look, every)


def _nothing(problem: str) -> View:
    nobody = {"url": None, "reachable": False, "error": problem, "seconds": None}
    data = {
        "healthy": False,
        "broker": nobody,
        "backend": nobody,
        "state": nobody,
        "agents": [],
        "queues": [],
    }
    data |= {"dead_letters": None, "breakers": {}, "problems": [problem], "warnings": []}
    return View(data, [_line("problem", problem, PROBLEM_STYLE)], FAILED)


def _view(config: ConductorConfig, overview: Overview, *, narrow: bool, strict: bool) -> View:
    problems, warnings = overview.problems(), overview.warnings()
    healthy = not problems and not (strict and warnings)
    store = _server_data(overview.store)
    data = {
        "healthy": healthy,
        "broker": _server_data(overview.broker),
        "backend": store,
        "state": store,
        "agents": [agent_data(agent, overview.lives(agent)) for agent in overview.agents],
        "queues": [
            {"name": queue.name, "ready": queue.ready, "consumers": queue.consumers}
            for queue in overview.queues
        ],
        "dead_letters": overview.dead_letters,
        "breakers": {kind.value: state.value for kind, state in overview.breakers.items()},
        "problems": problems,
        "warnings": warnings,
    }
    parts: list[Table | Text] = [_servers(overview, embedded=uses_embedded(config))]
    if overview.agents:
        parts += [Text(), agents_of(overview, narrow=narrow)]
    if overview.queues:
        parts += [Text(), queues_table(overview.queues)]
    parts += [
        Text(),
        *(_line("problem", text, PROBLEM_STYLE) for text in problems),
        *(_line("warning", text, WARNING_STYLE) for text in warnings),
    ]
    if healthy:
        parts.append(Text("healthy", FINE_STYLE))
    return View(data, parts, 0 if healthy else FAILED)


def _server_data(server: Server) -> dict[str, Any]:
    return {
        "url": server.url,
        "reachable": server.error is None,
        "error": server.error,
        "seconds": server.seconds and round(server.seconds, 4),
    }


def _servers(overview: Overview, *, embedded: bool) -> Table:
    table = table_of("server", "where", "answer")
    for name, server in (
        ("broker", overview.broker),
        ("backend", overview.store),
        ("state", overview.store),
    ):
        where = f"{server.url} (embedded)" if embedded and server.url.startswith("redis") else server.url
        answer = Text(f"{1000 * (server.seconds or 0):.0f} ms", FINE_STYLE)
        table.add_row(name, where, answer if server.error is None else Text("none", PROBLEM_STYLE))
    return table


def agent_data(agent: AgentState, alive: bool) -> dict[str, Any]:
    """Give what programs read of an agent."""
    age = heartbeat_age(agent)
    return {
        "agent_id": agent.agent_id,
        "agent_type": agent.agent_type.value,
        "status": agent.status.value,
        "alive": alive,
        "heartbeat_age_seconds": None if age is None else round(age, 1),
        "current_task_id": agent.current_task_id,
        "completed": len(agent.completed_tasks),
        "failed": len(agent.failed_tasks),
        "errors": agent.error_count,
        "node": agent.metadata.get("node"),
    }


def agents_table(agents: list[tuple[AgentState, bool]], *, narrow: bool) -> Table:
    """Make the table of agents, each with whether it lives; a narrow one has only the beginnings of ids."""
    table = table_of(
        "agent", "type", "status", "heartbeat", "task", "done", "failed", right=("done", "failed")
    )
    for agent, alive in agents:
        age = heartbeat_age(agent)
        beat = "never" if age is None else f"{age:.0f} s ago"
        table.add_row(
            agent.agent_id,
            agent.agent_type.value,
            Text(agent.status.value, FINE_STYLE if alive else WARNING_STYLE),
            Text(beat, "" if alive else WARNING_STYLE),
            brief(agent.current_task_id or "-", narrow=narrow),
            str(len(agent.completed_tasks)),
            str(len(agent.failed_tasks)),
        )
    return table


def agents_of(overview: Overview, *, narrow: bool) -> Table:
    """Make the table of the agents of an overview."""
    return agents_table([(agent, overview.lives(agent)) for agent in overview.agents], narrow=narrow)


def queues_table(queues: Iterable[QueueDepth]) -> Table:
    """Make the table of queues, in their order."""
    table = table_of("queue", "waiting", right=("waiting",))
    for queue in queues:
        table.add_row(queue.name, str(queue.ready))
    return table


def _line(word: str, text: str, style: str) -> Text:
    return Text.assemble((f"{word}: ", style), text)
