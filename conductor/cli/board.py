"""How far a workflow run is, and how a person sees it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conductor.cli.output import Output
from conductor.cli.progress import Progress
from conductor.cli.summary import details, headline
from conductor.cli.workflow_file import Workflow
from conductor.core.enums import TaskStatus
from conductor.core.messages import StatusUpdatePayload
from conductor.core.models import TaskDefinition, TaskResult
from conductor.orchestration.workflow_events import WorkflowEvent
from conductor.orchestration.workflow_ledger import UNASSIGNED
from conductor.orchestration.workflow_progress import id_in_definition

STYLES = {
    TaskStatus.PENDING: "dim",
    TaskStatus.IN_PROGRESS: "cyan",
    TaskStatus.COMPLETED: "green",
    TaskStatus.FAILED: "bold red",
    TaskStatus.SKIPPED: "yellow",
    TaskStatus.BLOCKED: "yellow",
}


@dataclass
class Row:
    """One task's line."""

    task: TaskDefinition
    phase: str
    status: TaskStatus = TaskStatus.PENDING
    agent_id: str = ""
    started: float | None = None
    result: TaskResult | None = None
    progress: Progress = field(default_factory=Progress)
    feedback_round: int = 0
    announced: set[TaskStatus] = field(default_factory=set)

    @property
    def seconds(self) -> float | None:
        """How long the task has been running, or ran."""
        if self.result is not None and self.result.duration_seconds is not None:
            return self.result.duration_seconds
        return None if self.started is None else time.monotonic() - self.started

    @property
    def remark(self) -> str:
        """What is known of the outcome, or of the progress while it runs."""
        if self.result is None or self.status is TaskStatus.IN_PROGRESS:
            return self.progress.text
        return headline(self.task.assigned_to, self.result)


class Board:
    """A live table on a terminal, elsewhere a line for every change; `with board` while the run lasts."""

    def __init__(self, workflow: Workflow, output: Output) -> None:
        self._title = workflow.definition.name
        self._output = output
        self.rows = {
            task.task_id: Row(task, workflow.phases[task.task_id].value) for task in workflow.ordered_tasks
        }
        self.note = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._output.human.is_terminal:
            self._live = Live(
                get_renderable=self.table, console=self._output.human, refresh_per_second=8, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Tell what goes on beside the tasks: under the table, or as a line."""
        self.note = text
        if self._live is None:
            self._output.say(text)

    def on_event(self, event: WorkflowEvent) -> None:
        """Something happened in the run."""
        if event.repeated:
            return  # `restore` shows it.
        if event.event == "task_started" and event.task is not None:
            self.started(event.task.task_id, event.feedback_round)
        elif event.event == "task_ended" and event.task is not None and event.result is not None:
            self.ended(event.task.task_id, event.result)
        elif event.event in ("feedback", "gate_denied") and event.message:
            self.say(f"{event.event.replace('_', ' ')}: {event.message}")

    def restore(self, results: Mapping[str, TaskResult]) -> None:
        """Show what ended before this process ran the workflow."""
        for task_id, result in results.items():
            row = self.rows[task_id]
            row.status, row.agent_id, row.result = result.status, result.agent_id, result
            row.announced.add(result.status)

    def started(self, task_id: str, feedback_round: int = 0) -> None:
        """A task was given away, in a feedback round perhaps once more."""
        row = self.rows[task_id]
        row.status, row.started, row.result, row.agent_id = TaskStatus.IN_PROGRESS, time.monotonic(), None, ""
        row.progress, row.feedback_round = Progress(), feedback_round
        row.announced.clear()
        self._announce(row)

    def taken(self, task_id: str | None, agent_id: str) -> None:
        """An agent works on a task."""
        row = self.rows.get(id_in_definition(task_id or ""))
        if row is not None and row.result is None:
            row.agent_id = agent_id

    def progressed(self, report: StatusUpdatePayload) -> None:
        """An agent says how far a task is."""
        row = self.rows.get(id_in_definition(report.current_task_id or ""))
        if row is None or row.status is not TaskStatus.IN_PROGRESS:
            return
        if row.progress.take(report) and self._live is None:
            self._output.say(f"{row.phase}: {row.task.name}: {row.progress.text}")

    def ended(self, task_id: str, result: TaskResult) -> None:
        """A task has a result."""
        row = self.rows[task_id]
        row.status, row.agent_id, row.result = result.status, result.agent_id, result
        self._announce(row)

    def table(self) -> Table:
        """The rows as they are now."""
        table = Table(
            title=self._title, title_justify="left", caption=self.note or None, caption_justify="left"
        )
        for name in ("phase", "task", "agent", "status"):
            table.add_column(name, no_wrap=name != "task")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("outcome", ratio=1)
        previous = ""
        for row in self.rows.values():
            seconds = f"{row.seconds:.1f} s" if row.seconds is not None else ""
            phase, previous = ("" if row.phase == previous else row.phase), row.phase
            status = Text(row.status.value, STYLES[row.status])
            name = f"{row.task.name} (feedback {row.feedback_round})" if row.feedback_round else row.task.name
            agent = "" if row.agent_id == UNASSIGNED else row.agent_id
            cells = (Text(phase), Text(name), Text(agent), status, Text(seconds))
            table.add_row(*cells, Text(row.remark))
        return table

    def summarize(self, console: Console) -> None:
        """The table a last time, and what each agent did or found."""
        self.note = ""
        if console.is_terminal:
            console.print(self.table())
        for row in self.rows.values():
            console.print(Text.assemble((row.task.name, "bold"), ": ", _outcome(row)), soft_wrap=True)
            for line in details(row.task.assigned_to, row.result) if row.result else ():
                console.print(f"    {line}", soft_wrap=True)

    def _announce(self, row: Row) -> None:
        if self._live is not None or row.status in row.announced:
            return
        row.announced.add(row.status)
        again = f" (feedback {row.feedback_round})" if row.feedback_round else ""
        parts = [f"{row.phase}: {row.task.name}{again}: {row.status.value}"]
        if row.result is not None:
            parts.append(f"{by(row.agent_id)} in {row.seconds or 0:.1f} s".lstrip())
            parts.append(f"({row.remark})" if row.remark else "")
        self._output.say(" ".join(filter(None, parts)))


def by(agent_id: str) -> str:
    """Tell who did a task, behind its status; nothing where nobody had it."""
    return "" if agent_id == UNASSIGNED else f" by {agent_id}"


def _outcome(row: Row) -> str:
    return row.remark or row.status.value
