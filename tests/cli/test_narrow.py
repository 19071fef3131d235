"""What looks at things on a terminal of 80 columns, into a pipe that is closed, and with many of them."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.fields import new_id, utc_now
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager
from tests.support.cli import COMMAND, LIMIT, conductor, environment, on_terminal

ERROR = "ValueError: nothing of it can be used,\nnot even the beginning, which is longer than a line"
NAME = "a workflow with a name that is longer than all of the column"
WORKFLOW, TASK = new_id(), new_id()
OWN_ID = "nightly-2026-11-26"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server where three hundred tasks and two workflows have been."""
    directory = tmp_path_factory.mktemp("narrow")
    with EmbeddedServer(directory) as server:
        asyncio.run(fill(server.url))
        yield directory


async def fill(url: str) -> None:
    async with RedisStateManager(url) as state:
        for number in range(300):
            result = TaskResult(
                task_id=new_id(),
                agent_id="coding-1",
                status=TaskStatus.FAILED,
                error_message=ERROR,
                completed_at=utc_now(),
                metadata={"workflow_id": WORKFLOW} if number < 3 else {},
            )
            await state.save_task_result(result)
        for workflow_id in (WORKFLOW, OWN_ID):
            definition = {"definition": {"name": NAME}}
            await state.save_workflow_state(WorkflowState(workflow_id=workflow_id, metadata=definition))
        agent = AgentState(
            agent_id="coding-1",
            agent_type=AgentType.CODING,
            status=AgentStatus.RUNNING,
            current_task_id=TASK,
            last_heartbeat=utc_now(),
        )
        await state.save_agent_state(agent)


def lines_of(data: Path, *arguments: str) -> list[str]:
    _, text = on_terminal(data, *arguments, cwd=data)
    lines = [line.rstrip() for line in text.splitlines()]
    assert all(len(line) <= 80 for line in lines), text
    return lines


def test_a_task_is_one_line_with_the_beginning_of_its_id(data: Path) -> None:
    heading, *tasks, hint = lines_of(data, "tasks", "--limit", "5")
    assert heading.split()[:3] == ["task", "name", "status"]
    assert len(tasks) == 5
    for line in tasks:
        assert len(line.split()[0]) == 8
        assert line.split()[2:4] == ["failed", "coding-1"]
        assert "ValueError: nothing of" in line
    assert hint == "there are more: --offset 5"
    assert conductor(data, "show", tasks[0].split()[0], cwd=data).stdout.startswith("task  ")


def test_a_workflow_is_one_line_and_an_id_that_says_something_is_whole(data: Path) -> None:
    _, *workflows = lines_of(data, "workflows")
    assert {line.split()[0] for line in workflows} == {WORKFLOW[:8], OWN_ID}
    assert all("pending" in line for line in workflows)
    assert conductor(data, "tasks", "--workflow", WORKFLOW[:8], cwd=data).stdout.count("failed") == 3


@pytest.mark.parametrize("command", ["agents", "status", "top --once --interval 0.1"])
def test_an_agent_is_one_line(data: Path, command: str) -> None:
    [agent] = [line for line in lines_of(data, *command.split()) if line.startswith("coding-1")]
    assert TASK[:8] in agent
    assert TASK not in agent


def test_nothing_is_cut_in_a_pipe(data: Path) -> None:
    text = conductor(data, "workflows", cwd=data).stdout
    assert f"{WORKFLOW} " in text
    assert NAME in text
    text = conductor(data, "tasks", "--limit", "300", cwd=data).stdout
    assert text.count(" ".join(ERROR.split())) == 300
    assert "there are more" not in text


@pytest.mark.parametrize("command", ["agents -w 0.1", "tasks -w 0.1 --json", "top --interval 0.1"])
def test_a_reader_that_leaves_ends_it_as_it_ends_others(data: Path, command: str) -> None:
    with subprocess.Popen(
        [COMMAND, *command.split()], env=environment(data), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(LIMIT) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", ["status", "agents", "workflows", "tasks"])
def test_ctrl_c_ends_watching(data: Path, command: str) -> None:
    code, text = on_terminal(data, command, "--watch", "0.5", cwd=data, keys=b"\x03")
    assert code == 0, text
    assert "Traceback" not in text
