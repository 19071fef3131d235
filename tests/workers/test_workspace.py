"""Working copies, shared and temporary, and inputs that allow none."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.models import TaskDefinition
from tests.support.projects import make_project, write_files
from tests.workers.conftest import RunAgent
from workers.agents import AGENTS
from workers.agents.copying import MARKER
from workers.agents.failure import WorkFailedError
from workers.agents.tool_agent import ToolAgent
from workers.agents.workspace import temporary_copy, working_copy


async def test_a_copy_leaves_out_version_control_environments_and_caches(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        ".git/config": "",
        ".venv/pyvenv.cfg": "",
        "my-env/pyvenv.cfg": "",
        "demo/__pycache__/x.pyc": b"",
        "build/lib/x.py": "",
        "demo/build/kept.py": "",
        "demo.egg-info/PKG-INFO": "",
        ".env": "",
    }
    project = make_project(tmp_path / "project", files)
    (project / "empty").mkdir()
    os.mkfifo(project / "pipe")
    script = write_files(project, {"run.sh": "#!/bin/sh\n"}) / "run.sh"
    script.chmod(0o555)
    async with temporary_copy(project) as copy:
        top = {path.name for path in copy.iterdir()}
        assert top == {"demo", "tests", "empty", ".env", "pyproject.toml", "run.sh"}
        assert {path.name for path in (copy / "demo").iterdir()} == {"__init__.py", "greeting.py", "build"}
        assert (copy / "run.sh").stat().st_mode & stat.S_IXUSR
        assert (copy / "run.sh").stat().st_mode & stat.S_IWUSR
    assert not copy.parent.exists()


async def test_links_within_the_project_lead_to_the_copy(project: Path) -> None:
    (project / "absolute.py").symlink_to(project / "demo/greeting.py")
    (project / "package").symlink_to("demo")
    async with temporary_copy(project) as copy:
        assert (copy / "absolute.py").resolve() == (copy / "demo/greeting.py").resolve()
        assert (copy / "package").resolve() == (copy / "demo").resolve()


async def test_many_who_come_first_make_one_workspace(project: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "deep" / "workspace"
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with working_copy(project, workspace) as copy:
            assert (copy / "demo/greeting.py").exists()
            inside += 1

    await asyncio.gather(*(enter() for _ in range(20)))
    assert inside == 20
    assert [path.name for path in workspace.parent.iterdir()] == ["workspace"]


async def test_exclusive_work_waits_for_the_others_and_they_for_it(project: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    log: list[str] = []

    async def work(name: str, exclusive: bool) -> None:
        async with working_copy(project, workspace, exclusive=exclusive):
            log.append(f"{name} in")
            await asyncio.sleep(0)
            log.append(f"{name} out")

    async with working_copy(project, workspace), working_copy(project, workspace):
        waiting = asyncio.create_task(work("writer", exclusive=True))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
    await waiting
    assert log == ["writer in", "writer out"]


async def test_a_directory_that_no_agent_made_is_not_taken_as_workspace(
    project: Path, tmp_path: Path
) -> None:
    other = write_files(tmp_path / "other", {"precious.txt": "mine"})
    with pytest.raises(WorkFailedError, match="was not made by an agent"):
        async with working_copy(project, other):
            pass
    assert [path.name for path in other.iterdir()] == ["precious.txt"]


async def test_a_workspace_belongs_to_one_project(project: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    async with working_copy(project, workspace):
        pass
    second = make_project(tmp_path / "second")
    with pytest.raises(WorkFailedError, match=r"is a copy of .*project, not of .*second"):
        async with working_copy(second, workspace):
            pass


@pytest.mark.parametrize("place", [".", "inside/it", ".."])
async def test_workspace_and_project_may_not_lie_in_each_other(project: Path, place: str) -> None:
    with pytest.raises(WorkFailedError, match="lie within each other"):
        async with working_copy(project, project / place):
            pass


async def test_a_cancelled_copy_leaves_nothing(project: Path, tmp_path: Path) -> None:
    write_files(project, {f"many/{number}.py": "x = 1\n" for number in range(3000)})
    workspace = tmp_path / "workspaces" / "one"

    async def enter() -> None:
        async with working_copy(project, workspace):
            pass

    entering = asyncio.create_task(enter())
    while not list((tmp_path / "workspaces").glob(".one.*/many")):
        assert not entering.done()
        await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert list((tmp_path / "workspaces").iterdir()) == []


@pytest.mark.parametrize("name", sorted(n for n, agent in AGENTS.items() if issubclass(agent, ToolAgent)))
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "the task's input has no 'project'"),
        ("/nowhere/at/all", "there is no directory /nowhere/at/all"),
        ("no/such", f"no directory 'no/such' in {Path.cwd()}, where this agent runs: set the task's input"),
        (17, "the task's input 'project' must be a path, not 17"),
        ("a\0b", "must be a path"),
    ],
)
async def test_a_project_that_cannot_be_is_explained(
    name: str, value: object, said: str, run_agent: RunAgent
) -> None:
    result = await run_agent(name, project=value)
    assert result.status is TaskStatus.FAILED
    assert said in (result.error_message or "")


async def test_a_file_and_a_directory_without_python_are_no_projects(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    letters = write_files(tmp_path / "letters", {"a/dear.txt": "hello"})
    result = await run_agent("coding", project=letters)
    assert "is not a Python project" in (result.error_message or "")
    result = await run_agent("coding", project=letters / "a/dear.txt")
    assert "is not a directory" in (result.error_message or "")


async def test_a_task_for_another_type_is_refused(project: Path, tmp_path: Path) -> None:
    from conductor.core.config import ConductorConfig

    agent = AGENTS["coding"]("coding-1", ConductorConfig(data_dir=tmp_path))
    with pytest.raises(AgentError) as caught:
        await agent.execute_task(TaskDefinition(name="t", assigned_to=AgentType.REVIEW))
    assert caught.value.error_code == "TASK_VALIDATION_FAILED"


async def test_the_marker_is_not_in_what_is_built_from_a_workspace(project: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    async with working_copy(project, workspace) as shared, temporary_copy(shared) as copy:
        assert (shared / MARKER).exists()
        assert not (copy / MARKER).exists()
