"""`conductor agents`, `workflows` and `tasks`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from conductor.broker.dead_letter_queue import SHORT_ID
from conductor.broker.liveness import heartbeat_limit, lives
from conductor.broker.task_list import TaskRecord, task_records, tasks_without_result
from conductor.cli.board import STYLES
from conductor.cli.output import Output
from conductor.cli.servers import Lookout, looking, servers_of_a_run
from conductor.cli.status import agent_data, agents_table
from conductor.cli.values import show_duration
from conductor.cli.views import View, brief, cut_text, present, table_of
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase
from conductor.core.fields import utc_now
from conductor.core.models import TaskResult
from conductor.core.state import WorkflowState
from conductor.orchestration.workflow_ledger import UNASSIGNED


@dataclass(frozen=True)
class Page:
    """Which part of a long list."""

    limit: int
    offset: int

    @property
    def end(self) -> int:
        """How many there are with those before it."""
        return self.offset + self.limit

    def parts(self, table: Table, found: int, nothing: str) -> list[Table | Text]:
        """Show a table, and whether there is more: `found` counts one more than the page then."""
        if not found:
            return [Text(nothing)]
        more = Text(f"there are more: --offset {self.end}", "dim")
        return [table, more] if found > self.limit else [table]


async def list_agents(
    config: ConductorConfig,
    output: Output,
    every: float | None,
    agent_type: AgentType | None,
    status: AgentStatus | None,
    *,
    only_alive: bool,
) -> int:
    """Show the agents, by their ids."""
    limit = heartbeat_limit(config)
    async with looking(config) as lookout:

        async def look() -> View:
            known = await lookout.state.list_agent_states(agent_type=agent_type, status=status)
            agents = [(agent, lives(agent, limit)) for agent in sorted(known, key=lambda each: each.agent_id)]
            if only_alive:
                agents = [(agent, alive) for agent, alive in agents if alive]
            data = [agent_data(agent, alive) for agent, alive in agents]
            table = agents_table(agents, narrow=output.is_narrow)
            return View(data, [table] if agents else [Text("no agents")])

        return await present(output, look, every)


async def list_workflows(
    config: ConductorConfig,
    output: Output,
    every: float | None,
    status: TaskStatus | None,
    phase: WorkflowPhase | None,
    page: Page,
) -> int:
    """Show the workflow runs, the newest first."""
    async with servers_of_a_run(config) as config, looking(config) as lookout:

        async def look() -> View:
            found = await lookout.state.list_workflow_states(
                status=status, current_phase=phase, limit=page.limit + 1, offset=page.offset
            )
            columns = ("workflow", "name", "status", "phase", "done", "failed", "age", "took")
            table = table_of(*columns, cut=("name",))
            for state in found[: page.limit]:
                table.add_row(
                    brief(state.workflow_id, narrow=output.is_narrow),
                    cut_text(name_of(state)),
                    _status(state.status),
                    state.current_phase.value,
                    str(state.completed_task_count),
                    str(state.failed_task_count),
                    ago(state.started_at),
                    "-" if state.duration_seconds is None else f"{state.duration_seconds:.1f} s",
                )
            data = [workflow_data(state) for state in found[: page.limit]]
            return View(data, page.parts(table, len(found), "no workflows"))

        return await present(output, look, every)


@dataclass(frozen=True)
class Wanted:
    """Which tasks."""

    status: TaskStatus | None
    agent: str | None
    workflow: str | None
    page: Page


async def list_tasks(config: ConductorConfig, output: Output, every: float | None, wanted: Wanted) -> int:
    """Show the tasks: those that run, those that wait, then those that ended, the newest first."""
    async with servers_of_a_run(config) as config, looking(config) as lookout:

        async def look() -> View:
            found = await _tasks(lookout, wanted)
            rows = found[: wanted.page.limit]
            columns = ("task", "name", "status", "agent or queue", "took", "ended", "error")
            table = table_of(*columns, cut=("name", "error"))
            for row in rows:
                table.add_row(
                    brief(row["task_id"], narrow=output.is_narrow),
                    cut_text(row["name"] or "-"),
                    _status(TaskStatus(row["status"])),
                    row["agent_id"] or _queue(row["queue"], narrow=output.is_narrow) or "-",
                    "-" if row["duration_seconds"] is None else f"{row['duration_seconds']:.1f} s",
                    ago(datetime.fromisoformat(row["completed_at"])) if row["completed_at"] else "-",
                    cut_text(row["error"] or ""),
                )
            return View(rows, wanted.page.parts(table, len(found), "no tasks"))

        return await present(output, look, every)


async def _tasks(lookout: Lookout, wanted: Wanted) -> list[dict[str, Any]]:
    """Give the page, and one more if there is one."""
    link = lookout.state.link
    rows: list[dict[str, Any]] = []
    revoked: list[dict[str, Any]] = []
    if wanted.status in (None, TaskStatus.PENDING, TaskStatus.IN_PROGRESS, TaskStatus.SKIPPED):
        found = await tasks_without_result(link)
        revoked = [
            _of_result(result) | _of_revoked(task) for task in found if (result := task.revoked_result)
        ]
        going = [task for task in found if task.status is not None]
        going.sort(key=lambda task: (task.status is not TaskStatus.IN_PROGRESS, task.queue, task.task_id))
        rows += [_of_record(task) for task in going]
    if wanted.status not in (TaskStatus.PENDING, TaskStatus.IN_PROGRESS):
        # Filters that the store has no index for need all of it.
        whole = wanted.agent is not None or wanted.workflow is not None
        count = None if whole else wanted.page.end + 1
        results = await lookout.state.list_task_results(status=wanted.status, limit=count)
        rows += _with_revoked([_of_result(result) for result in results], revoked)
    begun = {row["task_id"] for row in rows if row["completed_at"] is None}
    rows = [row for row in rows if row["completed_at"] is None or row["task_id"] not in begun]
    rows = [row for row in rows if _is_wanted(row, wanted)]
    rows = rows[wanted.page.offset : wanted.page.end + 1]
    await _add_names(lookout, rows)
    return rows


def _with_revoked(ended: list[dict[str, Any]], revoked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put revoked tasks among those that ended; a saved result says more, unless it is of an earlier run."""
    skipped = {row["task_id"] for row in ended if row["status"] == TaskStatus.SKIPPED.value}
    more = {row["task_id"]: row for row in revoked if row["task_id"] not in skipped}
    rows = [row for row in ended if row["task_id"] not in more] + list(more.values())
    return sorted(rows, key=lambda row: datetime.fromisoformat(row["completed_at"]), reverse=True)


def _is_wanted(row: dict[str, Any], wanted: Wanted) -> bool:
    return (
        (wanted.status is None or row["status"] == wanted.status.value)
        and (wanted.agent is None or wanted.agent in (row["agent_id"], row["queue"].rpartition(".")[2]))
        and (wanted.workflow is None or _is_id(row["workflow_id"], wanted.workflow))
    )


def _is_id(some_id: str, given: str) -> bool:
    return some_id == given or (len(given) >= SHORT_ID and some_id.startswith(given))


async def _add_names(lookout: Lookout, rows: list[dict[str, Any]]) -> None:
    nameless = [row for row in rows if not row["name"]]
    records = await task_records(lookout.state.link, [row["task_id"] for row in nameless])
    for row, record in zip(nameless, records, strict=True):
        if record is not None:
            row["name"], row["queue"] = record.name, record.queue


def _of_record(task: TaskRecord) -> dict[str, Any]:
    status = task.status or TaskStatus.PENDING
    return {
        "task_id": task.task_id,
        "name": task.name,
        "status": status.value,
        "agent_id": task.agent_id if status is TaskStatus.IN_PROGRESS else "",
        "queue": task.queue,
        "workflow_id": task.workflow_id,
        "retries": task.retries,
        "started_at": None,
        "completed_at": None,
        "duration_seconds": None,
        "error": None,
    }


def _of_revoked(task: TaskRecord) -> dict[str, Any]:
    """What a record tells of a revoked task besides its result."""
    return {
        "name": task.name,
        "agent_id": task.agent_id,
        "queue": task.queue,
        "workflow_id": task.workflow_id,
        "retries": task.retries,
    }


def _of_result(result: TaskResult) -> dict[str, Any]:
    ended = result.completed_at or result.started_at
    return {
        "task_id": result.task_id,
        "name": "",
        "status": result.status.value,
        "agent_id": "" if result.agent_id == UNASSIGNED else result.agent_id,
        "queue": "",
        "workflow_id": str(result.metadata.get("workflow_id") or ""),
        "retries": None,
        "started_at": result.started_at.isoformat(),
        "completed_at": ended.isoformat(),
        "duration_seconds": result.duration_seconds,
        "error": result.error_message,
    }


def workflow_data(state: WorkflowState) -> dict[str, Any]:
    """Give what programs read of a workflow in a list."""
    return {
        "workflow_id": state.workflow_id,
        "name": name_of(state),
        "status": state.status.value,
        "outcome": state.metadata.get("outcome"),
        "current_phase": state.current_phase.value,
        "started_at": state.started_at.isoformat(),
        "completed_at": state.completed_at and state.completed_at.isoformat(),
        "duration_seconds": state.duration_seconds,
        "completed_tasks": state.completed_task_count,
        "failed_tasks": state.failed_task_count,
        "feedback_count": state.feedback_count,
    }


def name_of(state: WorkflowState) -> str:
    definition = state.metadata.get("definition")
    return str(definition.get("name", "")) if isinstance(definition, dict) else ""


def _queue(name: str, *, narrow: bool) -> str:
    return name.removeprefix("conductor.") if narrow else name


def _status(status: TaskStatus) -> Text:
    return Text(status.value, STYLES.get(status, ""))


def ago(moment: datetime) -> str:
    return show_duration(max(0.0, (utc_now() - moment).total_seconds()))
