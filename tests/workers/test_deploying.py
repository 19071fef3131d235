"""The deploying agent tries a wheel out where nothing else is installed."""

import asyncio
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import pytest

from conductor.core.enums import TaskStatus
from tests.support.cli import processes_of
from tests.support.waiting import wait_until
from tests.support.wheels import make_wheel
from tests.workers.conftest import RunAgent

CODE = """\
import importlib.util, os, sys


def main():
    print(sys.argv[1:], os.listdir(), [n for n in ("pytest", "pip", "demo") if importlib.util.find_spec(n)])


def fail():
    sys.exit("no disk")
"""
SCRIPTS = {"another": "demo:fail", "demo": "demo:main"}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made; pip finds nothing anywhere."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    return scratch


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_the_script_of_the_wheel_runs_with_nothing_else_installed(
    run_agent: RunAgent, tmp_path: Path, scratch: Path
) -> None:
    wheel = make_wheel(tmp_path, {"demo/__init__.py": CODE}, scripts=SCRIPTS)
    result = await run_agent("deploying", wheel=wheel)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    duration = result.output_data.pop("duration_seconds")
    assert 0 < duration <= (result.duration_seconds or 0)
    assert result.output_data == {
        "environment": {"python": platform.python_version(), "path": None},
        "installed": {"name": "demo", "version": "1.0"},
        "dependencies": {},
        "imported": ["demo"],
        "import_ok": True,
        "entry_point": "demo",
        "arguments": ["--help"],
        "exit_code": 0,
        "output": "['--help'] [] ['demo']\n",
    }
    assert names_in(scratch) == []


async def test_the_newest_wheel_of_the_workspace_is_taken(
    project: Path, run_agent: RunAgent, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    built = await run_agent("devops", project=project, workspace=workspace)
    older = make_wheel(workspace / "dist", {"older.py": ""}, name="older")
    os.utime(older, (1, 1))
    result = await run_agent("deploying", workspace=workspace)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["installed"] == {"name": "demo", "version": "0.3.0"}
    assert built.output_data["wheel"].startswith("demo-0.3.0")
    assert (result.output_data["imported"], result.output_data["entry_point"]) == (["demo"], None)


async def test_entry_point_and_arguments_are_the_tasks(run_agent: RunAgent, tmp_path: Path) -> None:
    files = {"demo/__init__.py": CODE, "demo/part.py": "print('part')"}
    wheel = make_wheel(tmp_path, files, scripts=SCRIPTS)
    result = await run_agent("deploying", wheel=wheel, entry_point="demo", arguments=["a b", "-c"])
    assert result.output_data["output"] == "['a b', '-c'] [] ['demo']\n"
    result = await run_agent("deploying", wheel=wheel, entry_point="demo.part")
    assert (result.output_data["imported"], result.output_data["exit_code"]) == (["demo.part"], None)
    result = await run_agent("deploying", wheel=wheel, entry_point="un-known")
    assert result.error_message == (
        "the task's input 'entry_point' is 'un-known', which is no module and none of the console scripts of "
        "demo-1.0-py3-none-any.whl (another, demo)"
    )


async def test_a_script_that_fails_and_an_import_that_fails_are_told(
    run_agent: RunAgent, tmp_path: Path, scratch: Path
) -> None:
    wheel = make_wheel(tmp_path, {"demo/__init__.py": CODE}, scripts=SCRIPTS)
    result = await run_agent("deploying", wheel=wheel, entry_point="another", arguments=[])
    assert result.status is TaskStatus.FAILED
    assert result.error_message == "another failed: exit code 1: no disk"
    assert (result.output_data["exit_code"], result.output_data["output"]) == (1, "no disk\n")
    # pytest is where the agent runs, and not in the environment.
    wheel = make_wheel(tmp_path, {"demo/__init__.py": "import pytest"})
    result = await run_agent("deploying", wheel=wheel)
    assert result.status is TaskStatus.FAILED
    assert (result.error_message or "").startswith("demo cannot be imported: exit code 1: ")
    assert "No module named 'pytest'" in (result.error_message or "")
    assert result.output_data["import_ok"] is False
    assert names_in(scratch) == []


async def test_dependencies_come_from_where_pip_is_configured_to_look(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path, {"demo.py": "import needed"}, requires=["needed>=1"])
    result = await run_agent("deploying", wheel=wheel)
    assert result.status is TaskStatus.FAILED
    assert (result.error_message or "").startswith(
        "pip cannot install demo-1.0-py3-none-any.whl: it depends on needed>=1 (from demo), which pip "
    )
    make_wheel(tmp_path / "links", {"needed.py": ""}, name="needed")
    result = await run_agent("deploying", wheel=wheel)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["dependencies"] == {"needed": "1.0"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the task's input has no 'wheel'"),
        ({"wheel": "nowhere.whl"}, "there is no wheel"),
        ({"wheel": "text.whl"}, "text.whl is not a wheel"),
        ({"workspace": "."}, "build it first (the devops agent does)"),
        ({"wheel": "good.whl", "arguments": "-v"}, "'arguments' must be a list of texts, not '-v'"),
        ({"wheel": "good.whl", "keep": "yes"}, "'keep' must be true or false, not 'yes'"),
    ],
)
async def test_a_wrong_input_is_named(
    given: dict[str, Any], said: str, run_agent: RunAgent, tmp_path: Path
) -> None:
    (tmp_path / "text.whl").write_text("text")
    make_wheel(tmp_path, {"demo.py": ""}).rename(tmp_path / "good.whl")
    data = {key: tmp_path / value if key in ("wheel", "workspace") else value for key, value in given.items()}
    result = await run_agent("deploying", **data)
    assert result.status is TaskStatus.FAILED
    assert said in (result.error_message or "")


async def test_the_environment_is_kept_where_the_task_asks_for_it(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    wheel = make_wheel(tmp_path, {"demo/__init__.py": CODE}, scripts=SCRIPTS)
    result = await run_agent("deploying", wheel=wheel, keep=True)
    kept = Path(result.output_data["environment"]["path"])
    assert kept.is_relative_to(tmp_path / "data")
    again = await asyncio.create_subprocess_exec(kept / "bin/another", stderr=asyncio.subprocess.PIPE)
    assert await again.communicate() == (None, b"no disk\n")
    result = await run_agent("deploying", wheel=wheel, keep=True, entry_point="another")
    assert result.status is TaskStatus.FAILED
    assert names_in(Path(result.output_data["environment"]["path"]))


async def test_cancelling_leaves_no_process_and_no_environment(
    run_agent: RunAgent, tmp_path: Path, scratch: Path
) -> None:
    code = (
        "import pathlib, time\n"
        f"def main():\n    pathlib.Path({str(tmp_path / 'running')!r}).touch()\n    time.sleep(600)\n"
    )
    wheel = make_wheel(tmp_path, {"demo.py": code}, scripts={"demo": "demo:main"})
    for keep in (False, True):
        running = asyncio.create_task(run_agent("deploying", wheel=wheel, keep=keep))
        await wait_until((tmp_path / "running").exists, timeout=60)
        (tmp_path / "running").unlink()
        assert processes_of(tmp_path)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert processes_of(tmp_path) == []
        assert names_in(scratch) == []
    assert names_in(tmp_path / "data/environments") == []
