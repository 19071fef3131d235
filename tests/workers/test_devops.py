"""The devops agent builds a wheel from what is installed."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from conductor.core.enums import TaskStatus
from tests.support.projects import PYPROJECT, make_project, write_files
from tests.workers.conftest import RunAgent

MINIMAL = '[project]\nname = "demo"\nversion = "0.3.0"\n'
SETUPTOOLS = '[build-system]\nrequires = ["setuptools>=61"]\nbuild-backend = "setuptools.build_meta"\n'
LEGACY = 'from setuptools import setup\nsetup(name="demo", version="0.3.0", packages=["demo"])\n'


async def test_the_wheel_has_the_name_size_and_hash_that_are_reported(
    project: Path, run_agent: RunAgent, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    result = await run_agent("devops", project=project, workspace=workspace)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    output = result.output_data
    wheel = workspace / "dist" / "demo-0.3.0-py3-none-any.whl"
    assert output["path"] == str(wheel)
    assert output["wheel"] == wheel.name
    assert output["size_bytes"] == wheel.stat().st_size
    assert output["sha256"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert "demo/greeting.py" in zipfile.ZipFile(wheel).namelist()
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"pyproject.toml": MINIMAL}, id="no backend named"),
        pytest.param({"pyproject.toml": MINIMAL + SETUPTOOLS}, id="backend named"),
        pytest.param({"setup.py": LEGACY}, id="setup.py only"),
    ],
)
async def test_a_project_of_setuptools_is_built_too(
    files: dict[str, str | bytes], run_agent: RunAgent, tmp_path: Path
) -> None:
    project = write_files(tmp_path / "project", {"demo/__init__.py": "", **files})
    result = await run_agent("devops", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["wheel"] == "demo-0.3.0-py3-none-any.whl"


async def test_without_a_workspace_the_wheel_stays_all_the_same(project: Path, run_agent: RunAgent) -> None:
    result = await run_agent("devops", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert zipfile.is_zipfile(result.output_data["path"])


async def test_the_output_directory_is_the_tasks_but_never_in_the_project(
    project: Path, run_agent: RunAgent, tmp_path: Path
) -> None:
    result = await run_agent("devops", project=project, output_dir=tmp_path / "out")
    assert result.output_data["path"] == str(tmp_path / "out" / "demo-0.3.0-py3-none-any.whl")
    result = await run_agent("devops", project=project, output_dir=project / "dist")
    assert result.status is TaskStatus.FAILED
    assert "never changed" in (result.error_message or "")


@pytest.mark.parametrize(
    ("pyproject", "said"),
    [
        pytest.param(
            PYPROJECT.replace("[project]", '[project]\nreadme = "nope.md"'), "nope.md", id="no readme"
        ),
        pytest.param(PYPROJECT.replace('"0.3.0"', '"three"'), "three", id="bad version"),
        pytest.param("[project\n", "pyproject.toml", id="bad toml"),
        pytest.param(
            PYPROJECT.replace('["hatchling"]', '["hatchling", "not-there-at-all>=1"]'),
            "packages that are not installed where the agent runs: not-there-at-all>=1",
            id="missing requirement",
        ),
        pytest.param(
            PYPROJECT.replace("hatchling.build", "no_such_backend"), "no_such_backend", id="backend"
        ),
    ],
)
async def test_a_build_that_fails_gives_the_reason_and_no_traceback(
    pyproject: str, said: str, run_agent: RunAgent, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", {"pyproject.toml": pyproject})
    result = await run_agent("devops", project=project)
    assert result.status is TaskStatus.FAILED
    message = result.error_message or ""
    assert message.startswith("the build failed: ")
    assert said in message
    assert "Traceback" not in message
    assert 'File "' not in message


async def test_a_project_without_a_build_is_said_so(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (project / "pyproject.toml").unlink()
    result = await run_agent("devops", project=project)
    assert result.error_message == (
        "the project cannot be built: it has neither a pyproject.toml nor a setup.py"
    )
