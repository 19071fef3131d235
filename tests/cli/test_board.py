"""The board tells of tasks that run at once, and of feedback rounds, as lines where there is no terminal."""

from pathlib import Path

import pytest

from conductor.cli.board import Board
from conductor.cli.output import Output
from conductor.cli.workflow_file import Workflow
from conductor.core.enums import AgentType, TaskStatus, WorkflowPhase
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEvent

CODE, TEST = (
    TaskDefinition(name=kind.value, task_id=f"id-{kind}", assigned_to=kind)
    for kind in (AgentType.CODING, AgentType.TEST)
)


def a_board(tmp_path: Path) -> Board:
    definition = WorkflowDefinition(
        name="flow", tasks=[CODE, TEST], variables={"workspace": "/w"}, workflow_id="w"
    )
    return Board(Workflow.of(definition, tmp_path), Output())


def event(
    kind: str, task: TaskDefinition | None = None, result: TaskResult | None = None, **fields: object
) -> WorkflowEvent:
    status = TaskStatus.IN_PROGRESS
    return WorkflowEvent(kind, "w", status, WorkflowPhase.DEVELOPMENT, task, result, **fields)  # type: ignore[arg-type]


def completed(task: TaskDefinition, agent_id: str) -> TaskResult:
    return TaskResult(
        task_id=task.task_id, agent_id=agent_id, status=TaskStatus.COMPLETED, duration_seconds=0.5
    )


def test_lines_tell_of_tasks_at_once_and_of_every_round(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    board = a_board(tmp_path)
    board.on_event(event("task_started", CODE))
    board.on_event(event("task_started", TEST))
    board.taken("id-test", "test-1")
    assert {row.task.name: row.agent_id for row in board.rows.values()} == {"coding": "", "test": "test-1"}
    board.on_event(event("task_ended", TEST, completed(TEST, "test-1")))
    board.on_event(event("task_ended", CODE, completed(CODE, "coding-1")))
    board.on_event(event("feedback", message="round 1: slow"))
    board.on_event(event("task_started", CODE, feedback_round=1))
    board.taken("id-coding.feedback-1", "coding-2")
    assert board.rows["id-coding"].agent_id == "coding-2"
    board.on_event(event("task_ended", CODE, completed(CODE, "coding-2"), feedback_round=1))
    assert capsys.readouterr().out.splitlines() == [
        "development: coding: in_progress",
        "development: test: in_progress",
        "development: test: completed by test-1 in 0.5 s",
        "development: coding: completed by coding-1 in 0.5 s",
        "feedback: round 1: slow",
        "development: coding (feedback 1): in_progress",
        "development: coding (feedback 1): completed by coding-2 in 0.5 s",
    ]


def test_what_ended_before_is_shown_in_the_end_and_not_announced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    board = a_board(tmp_path)
    results = {CODE.task_id: completed(CODE, "coding-1")}
    board.restore(results)
    for task_id, result in results.items():
        board.ended(task_id, result)
    assert capsys.readouterr().out == ""
    assert [row.status for row in board.rows.values()] == [TaskStatus.COMPLETED, TaskStatus.PENDING]


def test_nobody_is_named_for_a_task_that_nobody_had(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    board = a_board(tmp_path)
    nobodys = TaskResult(task_id=CODE.task_id, agent_id="unassigned", status=TaskStatus.FAILED)
    board.on_event(event("task_ended", CODE, nobodys))
    assert capsys.readouterr().out == "development: coding: failed in 0.0 s (failed)\n"
