"""The coding agent repairs a copy and hands back the diff."""

import asyncio
import subprocess
from pathlib import Path

from conductor.core.enums import TaskStatus
from tests.support.projects import make_project, snapshot, write_files
from tests.workers.conftest import RunAgent


async def test_it_fixes_and_formats_and_the_diff_applies_to_the_original(
    project: Path, run_agent: RunAgent, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    result = await run_agent("coding", project=project, workspace=workspace)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["files_changed"] == ["demo/greeting.py"]
    assert result.output_data["fixed_codes"] == {"F401": 1}
    assert result.output_data["fixes"] == 1
    assert result.output_data["remaining"] == 0
    fixed = (workspace / "demo/greeting.py").read_text()
    assert "import sys" not in fixed
    assert "def greet(name):" in fixed
    patch = ["git", "-C", str(project), "apply", "-p1", "-"]
    await asyncio.to_thread(
        subprocess.run, patch, input=result.output_data["diff"], text=True, check=True, capture_output=True
    )
    assert (project / "demo/greeting.py").read_text() == fixed


async def test_what_it_leaves_is_what_a_review_then_finds(run_agent: RunAgent, tmp_path: Path) -> None:
    long = "def greet():\n    words = ['a', " + "'b', " * 30 + "'c']\n    print(l := 1)\n"
    project = make_project(tmp_path / "project", {"demo/long.py": long})
    workspace = tmp_path / "workspace"
    found = await run_agent("review", project=project)
    coded = await run_agent("coding", project=project, workspace=workspace)
    left = await run_agent("review", project=project, workspace=workspace)
    assert found.output_data["by_code"]["E501"] == 1
    assert coded.output_data["fixed_codes"]["E501"] == 1
    assert coded.output_data["remaining"] == left.output_data["findings_total"] > 0


async def test_with_feedback_it_takes_the_unsafe_fixes_too(run_agent: RunAgent, tmp_path: Path) -> None:
    unsafe = "def odd(number):\n    unused = 1\n    l = number % 2\n    return l == None\n"
    project = make_project(tmp_path / "project", {"demo/odd.py": unsafe})
    workspace = tmp_path / "workspace"
    feedback = {"source_agent_id": "monitor-1", "severity": "error", "findings": ["findings: 3"]}
    first = await run_agent("coding", project=project, workspace=workspace)
    assert (first.output_data["remaining"], first.output_data["unsafe_fixes"]) == (3, 0)
    second = await run_agent("coding", project=project, workspace=workspace, feedback=feedback)
    assert second.status is TaskStatus.COMPLETED, second.error_message
    assert second.output_data["fixed_codes"] == {"E711": 1, "F841": 1}
    assert (second.output_data["remaining"], second.output_data["unsafe_fixes"]) == (1, 2)
    assert second.output_data["files_changed"] == ["demo/odd.py"]
    at_once = await run_agent("coding", project=project, feedback=feedback)
    assert at_once.output_data["fixed_codes"] == {"E711": 1, "F401": 1, "F841": 1}
    assert at_once.output_data["unsafe_fixes"] == 2


async def test_feedback_that_is_none_is_named(project: Path, run_agent: RunAgent) -> None:
    for feedback, field in (("do better", "feedback"), ({"findings": []}, "feedback.source_agent_id")):
        result = await run_agent("coding", project=project, feedback=feedback)
        assert result.status is TaskStatus.FAILED
        assert (result.error_message or "").startswith(f"the task's input '{field}' cannot be used: ")


async def test_the_project_itself_is_never_changed(
    project: Path, run_agent: RunAgent, tmp_path: Path
) -> None:
    before = snapshot(project)
    for workspace in (None, tmp_path / "workspace"):
        for name in ("coding", "review", "test_data", "test", "devops"):
            result = await run_agent(name, project=project, workspace=workspace)
            assert result.status is TaskStatus.COMPLETED, result.error_message
            if name == "coding":
                assert result.output_data["workspace"] == (workspace and str(workspace))
    assert snapshot(project) == before


async def test_what_a_link_leads_to_is_not_changed_either(run_agent: RunAgent, tmp_path: Path) -> None:
    shared = write_files(tmp_path / "shared", {"tools.py": "import os\n", "kit/more.py": "import os\n"})
    project = make_project(tmp_path / "project")
    (project / "demo/tools.py").symlink_to(shared / "tools.py")
    (project / "demo/kit").symlink_to(shared / "kit")
    (project / "demo/absolute.py").symlink_to(project / "demo/greeting.py")
    (project / "loop").symlink_to(project)
    (project / "dangling.py").symlink_to(project / "nowhere.py")
    before = snapshot(shared), snapshot(project)
    result = await run_agent("coding", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert {"demo/greeting.py", "demo/kit/more.py", "demo/tools.py"} <= set(
        result.output_data["files_changed"]
    )
    assert (snapshot(shared), snapshot(project)) == before


async def test_a_syntax_error_is_named_with_its_place(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"demo/broken.py": "def f(:\n    pass\n"})
    result = await run_agent("coding", project=project)
    assert result.status is TaskStatus.FAILED
    assert result.error_message is not None
    assert result.error_message.startswith("the project has a syntax error: demo/broken.py:1:7: ")
    assert "Traceback" not in result.error_message


async def test_a_file_that_is_not_utf8_is_named(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"demo/latin.py": b"name = 'Ren\xe9'\n"})
    result = await run_agent("coding", project=project)
    assert result.status is TaskStatus.FAILED
    assert "demo/latin.py:1:1" in (result.error_message or "")
    assert "UTF-8" in (result.error_message or "")


async def test_a_broken_ruff_configuration_is_explained(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"ruff.toml": "bogus = 1\n"})
    result = await run_agent("coding", project=project)
    assert result.status is TaskStatus.FAILED
    assert "ruff cannot check the project" in (result.error_message or "")
    assert "bogus" in (result.error_message or "")


async def test_a_project_of_which_ruff_sees_nothing_has_nothing_to_fix(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    project = write_files(tmp_path / "project", {"pyproject.toml": "[project]\nname = 'x'\nversion = '1'\n"})
    result = await run_agent("coding", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["diff"] == ""
    assert result.output_data["files_changed"] == []


async def test_the_diff_is_bounded(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"demo/big.py": "a   =  [1 ,2]\n" * 100_000})
    result = await run_agent("coding", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["diff_truncated"] is True
    assert len(result.output_data["diff"]) == 1024 * 1024
