"""The review agent reports findings as data."""

from pathlib import Path

from conductor.core.enums import TaskStatus
from tests.support.projects import make_project
from tests.workers.conftest import RunAgent

BRANCHES = "def tangled(n):\n" + "".join(f"    if n == {i}:\n        return {i}\n" for i in range(12))


async def test_findings_have_file_line_column_code_message_and_severity(
    project: Path, run_agent: RunAgent
) -> None:
    result = await run_agent("review", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert result.output_data["findings"] == [
        {
            "tool": "ruff",
            "file": "demo/greeting.py",
            "line": 1,
            "column": 8,
            "code": "F401",
            "message": "`sys` imported but unused",
            "severity": "warning",
            "fixable": True,
        }
    ]
    assert result.output_data["findings_total"] == 1
    assert result.output_data["by_code"] == {"F401": 1}


async def test_functions_above_the_threshold_are_findings(run_agent: RunAgent, tmp_path: Path) -> None:
    inner = (
        "class Shop:\n    def sell(self):\n        def price():\n            return 1\n        return price\n"
    )
    project = make_project(tmp_path / "project", {"demo/tangled.py": BRANCHES, "demo/shop.py": inner})
    result = await run_agent("review", project=project)
    complexity = result.output_data["complexity"]
    assert complexity["threshold"] == 10
    assert complexity["maximum"] == 13
    assert complexity["functions"] == 5
    assert [(f["file"], f["line"], f["function"]) for f in complexity["over"]] == [
        ("demo/tangled.py", 1, "tangled")
    ]
    found = [f for f in result.output_data["findings"] if f["code"] == "complexity"]
    assert [f["message"] for f in found] == ["tangled has a cyclomatic complexity of 13, more than 10"]


async def test_the_threshold_is_the_tasks(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"demo/tangled.py": BRANCHES})
    result = await run_agent("review", project=project, complexity_threshold=13)
    assert result.output_data["complexity"]["over"] == []
    result = await run_agent("review", project=project, complexity_threshold="high")
    assert result.status is TaskStatus.FAILED
    assert result.error_message == (
        "the task's input 'complexity_threshold' must be a whole number of at least 1, not 'high'"
    )


async def test_a_syntax_error_fails_the_review_and_is_a_finding(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"demo/broken.py": "if True\n    pass\n"})
    result = await run_agent("review", project=project)
    assert result.status is TaskStatus.FAILED
    assert "the project has a syntax error: demo/broken.py:1:" in (result.error_message or "")
    errors = [f for f in result.output_data["findings"] if f["severity"] == "error"]
    assert {f["code"] for f in errors} == {"invalid-syntax"}


async def test_the_list_of_findings_is_bounded_and_the_total_is_not(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", {"demo/many.py": "import os\n" * 50})
    result = await run_agent("review", project=project, max_findings=7)
    assert len(result.output_data["findings"]) == 7
    assert result.output_data["findings_total"] > 50


async def test_a_project_in_a_hidden_directory_is_reviewed_too(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / ".hidden" / "project")
    result = await run_agent("review", project=project, workspace=tmp_path / ".local" / "ws")
    assert result.output_data["findings_total"] == 1
    assert result.output_data["complexity"]["functions"] == 2
