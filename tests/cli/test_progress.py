"""How far tasks are, as `conductor run` and `conductor dispatch` show it."""

import asyncio
import io
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.cli.board import Board
from conductor.cli.output import Output
from conductor.cli.progress import Listener, Progress
from conductor.cli.workflow_file import load_workflow
from conductor.core.channels import task_channel
from conductor.core.enums import AgentStatus, MessageType, TaskStatus
from conductor.core.messages import AgentMessage, StatusUpdatePayload
from conductor.core.models import TaskResult
from tests.support.cli import Background, background, conductor
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

ROOT = Path(__file__).parents[2]

WORKFLOW = """\
name: measuring
tasks:
  - {name: measure, assigned_to: monitor, input_data: {text: hello, wait_for: WAIT_FOR}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data = tmp_path_factory.mktemp("progress") / "data"
    agents = "tests.support.function_agents:measure"
    with background(data, "up", "--agents", agents, "--json", cwd=ROOT) as up:
        up.wait_for_event(event="ready")
        yield data


def report(task_id: str | None, percent: float | None, message: str | None = None) -> StatusUpdatePayload:
    return StatusUpdatePayload(
        agent_id="a",
        status=AgentStatus.RUNNING,
        current_task_id=task_id,
        progress_percent=percent,
        message=message,
    )


def saw(command: Background, line: str) -> bool:
    assert command.process.poll() is None, command
    return line in list(command.out)


def test_a_run_shows_progress_while_the_task_runs(data: Path, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    write_files(tmp_path, {"workflow.yaml": WORKFLOW.replace("WAIT_FOR", str(go_on))})
    with background(data, "run", str(tmp_path / "workflow.yaml")) as run:
        wait_until_sync(lambda: saw(run, "monitoring: measure: 40 % measuring hello\n"), timeout=60)
        go_on.touch()
        assert run.process.wait(60) == 0, run
    assert any("measure: completed by measure-1" in line for line in run.out)


def test_dispatch_shows_progress_while_the_task_runs(data: Path, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    inputs = ["--input", "text=hello", "--input", f"wait_for={go_on}"]
    with background(data, "dispatch", "--agent", "measure-1", *inputs) as dispatch:
        wait_until_sync(lambda: saw(dispatch, "measure-1 task: 40 % measuring hello\n"), timeout=60)
        go_on.touch()
        assert dispatch.process.wait(60) == 0, dispatch
    assert "measure-1 task: 90 % done\n" in dispatch.out


def test_ctrl_c_cancels_the_task_and_says_so(data: Path, tmp_path: Path) -> None:
    inputs = ["--input", "text=hello", "--input", f"wait_for={tmp_path / 'never'}"]
    with background(data, "dispatch", "--agent", "measure-1", *inputs) as dispatch:
        wait_until_sync(lambda: saw(dispatch, "measure-1 task: 40 % measuring hello\n"), timeout=60)
        assert dispatch.end(signal.SIGINT) == 130, dispatch
    assert re.fullmatch(r"interrupted: task [-0-9a-f]{36} is cancelled\n", "".join(dispatch.err))
    # The agent, which does one task at a time, is free.
    done = conductor(data, "dispatch", "--agent", "measure-1", "--input", "text=hello")
    assert done.returncode == 0, done.stdout


def test_dispatch_shows_all_of_a_short_task_and_keeps_it_out_of_the_json(data: Path) -> None:
    done = conductor(data, "dispatch", "-t", "monitor", "-i", "text=hello", "--name", "m", "--json")
    assert done.returncode == 0, done.stderr
    assert '"length": 5' in done.stdout
    assert "%" not in done.stdout
    assert done.stderr.splitlines()[:3] == [
        "m: 40 % measuring hello",
        "m: 90 % done",
        "m: completed by measure-1 in 0.0 s",
    ]


def make_board(tmp_path: Path) -> Board:
    write_files(tmp_path, {"workflow.yaml": WORKFLOW})
    return Board(load_workflow(tmp_path / "workflow.yaml", {}, tmp_path), Output())


def test_a_line_is_written_for_each_message_and_for_every_ten_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board(tmp_path)
    [task_id] = board.rows
    board.started(task_id)
    for number in range(1, 101):
        board.progressed(report(task_id, number / 2, f"file {number} of 100"))
    board.progressed(report(task_id, 50, "sorting\nall of it"))
    board.progressed(report(task_id, 50.4, "sorting\nall of it"))
    board.progressed(report("somebody else's", 51))
    board.progressed(report(None, 52))
    board.progressed(report(task_id, None, "no percentage"))
    board.ended(task_id, TaskResult(task_id=task_id, agent_id="a", status=TaskStatus.COMPLETED))
    board.progressed(report(task_id, 99, "too late"))
    start = "monitoring: measure:"
    assert capsys.readouterr().out.splitlines() == [
        f"{start} in_progress",
        f"{start} 0 % file 1 of 100",
        f"{start} 10 % file 21 of 100",
        f"{start} 20 % file 41 of 100",
        f"{start} 30 % file 61 of 100",
        f"{start} 40 % file 81 of 100",
        f"{start} 50 % sorting all of it",
        f"{start} completed by a in 0.0 s",
    ]


def test_a_task_that_runs_again_begins_anew(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    [task_id] = board.rows
    board.started(task_id)
    board.progressed(report(task_id, 90))
    board.ended(task_id, TaskResult(task_id=task_id, agent_id="a", status=TaskStatus.FAILED))
    board.started(task_id)
    assert board.rows[task_id].remark == ""
    board.progressed(report(task_id, 5, "again"))
    assert board.rows[task_id].remark == "5 % again"


def test_the_live_table_shows_the_progress_until_there_is_an_outcome(tmp_path: Path) -> None:
    board = make_board(tmp_path)

    def shown() -> str:
        text = io.StringIO()
        Console(width=120, file=text).print(board.table())
        return text.getvalue()

    [task_id] = board.rows
    board.started(task_id)
    board.progressed(report(task_id, 40, "measuring"))
    assert "40 % measuring" in shown()
    result = TaskResult(task_id=task_id, agent_id="a", status=TaskStatus.FAILED, error_message="no ruler")
    board.ended(task_id, result)
    assert "no ruler" in shown()
    assert "40 %" not in shown()


async def test_when_a_result_was_announced_all_reports_before_it_are_shown(valkey_url: str) -> None:
    shown: list[StatusUpdatePayload] = []

    def show(report: StatusUpdatePayload) -> None:
        time.sleep(0.001)  # a terminal that is slower than the broker
        shown.append(report)

    result = TaskResult(task_id="announced", agent_id="a", status=TaskStatus.COMPLETED)
    channel = task_channel(result.task_id)
    messages = [
        AgentMessage(
            message_type=MessageType.STATUS_UPDATE,
            sender_id="a",
            payload=report("announced", number / 10).model_dump(mode="json"),
        )
        for number in range(300)
    ]
    messages[150].payload = {"not": "a report"}
    async with (
        KombuMessageBus(valkey_url) as agent,
        KombuMessageBus(valkey_url) as cli,
        Listener(cli, channel, show) as listener,
    ):
        await asyncio.gather(*(agent.publish(channel, message) for message in messages))
        await listener.announce(result, "cli")
        assert len(shown) == 299


def test_the_same_message_is_news_after_ten_percent_only() -> None:
    progress = Progress()
    news = [progress.take(report("t", percent, "x")) for percent in (5, 9, 14.9, 15, 24, 25)]
    assert news == [True, False, False, True, False, True]
    assert progress.text == "25 % x"
