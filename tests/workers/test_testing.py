"""The test agent runs pytest and reports what it said."""

import sys
from pathlib import Path

from conductor.core.enums import TaskStatus
from tests.support.projects import make_project
from tests.workers.conftest import RunAgent

MIXED = """\
import pytest


def test_fails():
    assert 1 + 1 == 3, "sums are off"


def test_passes():
    pass


@pytest.mark.skip(reason="not today")
def test_skipped():
    pass


@pytest.mark.xfail
def test_known():
    assert False


@pytest.fixture
def broken():
    raise RuntimeError("no database")


def test_with_broken_fixture(broken):
    pass
"""


async def test_counts_and_duration_of_a_green_run(project: Path, run_agent: RunAgent) -> None:
    result = await run_agent("test", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    output = result.output_data
    assert (output["collected"], output["passed"], output["failed"]) == (1, 1, 0)
    assert output["failures"] == []
    assert output["duration_seconds"] > 0


async def test_failures_have_node_and_message(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"tests/test_mixed.py": MIXED})
    result = await run_agent("test", project=project)
    assert result.status is TaskStatus.FAILED
    counts = {key: value for key, value in result.output_data.items() if isinstance(value, int)}
    assert counts == {
        "collected": 6,
        "passed": 2,
        "failed": 1,
        "errors": 1,
        "skipped": 1,
        "xfailed": 1,
        "xpassed": 0,
    }
    first, second = result.output_data["failures"]
    assert first["node"] == "tests/test_mixed.py::test_fails"
    assert first["message"].startswith("AssertionError: sums are off")
    assert second["node"] == "tests/test_mixed.py::test_with_broken_fixture"
    assert second["kind"] == "error"
    assert second["message"] == "RuntimeError: no database"
    assert (result.error_message or "").startswith(
        "1 of 3 tests failed and 1 had errors outside the test itself: "
        "tests/test_mixed.py::test_fails: AssertionError: sums are off"
    )


async def test_no_tests_is_said_so(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    (project / "tests/test_greeting.py").unlink()
    result = await run_agent("test", project=project)
    assert result.status is TaskStatus.FAILED
    assert (result.error_message or "").startswith("pytest found no tests")


async def test_a_syntax_error_in_a_test_is_named(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"tests/test_broken.py": "def test(:\n"})
    result = await run_agent("test", project=project)
    assert result.status is TaskStatus.FAILED
    assert (result.error_message or "").startswith(
        "pytest cannot collect the tests: tests/test_broken.py: SyntaxError: "
    )


async def test_a_missing_module_is_named(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"tests/test_needy.py": "import not_there_at_all\n"})
    result = await run_agent("test", project=project)
    assert result.error_message == (
        "pytest cannot collect the tests: tests/test_needy.py: "
        "ModuleNotFoundError: No module named 'not_there_at_all'"
    )


async def test_a_conftest_that_cannot_be_loaded_is_explained(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"tests/conftest.py": "raise ValueError('bad day')\n"})
    result = await run_agent("test", project=project)
    assert (result.error_message or "").startswith("pytest cannot run: ")
    assert "bad day" in (result.error_message or "")


async def test_a_test_that_ends_the_process_is_named(run_agent: RunAgent, tmp_path: Path) -> None:
    crash = "import os, signal\ndef test_crash():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    project = make_project(tmp_path / "project", {"tests/test_crash.py": crash})
    result = await run_agent("test", project=project)
    assert result.status is TaskStatus.FAILED
    assert (result.error_message or "").startswith(
        "pytest was ended by SIGSEGV during tests/test_crash.py::test_crash"
    )


async def test_a_flood_of_output_is_survived(run_agent: RunAgent, tmp_path: Path) -> None:
    flood = "import os\ndef test_flood():\n    for _ in range(400):\n        os.write(1, b'x' * 100_000)\n"
    project = make_project(tmp_path / "project", {"tests/test_flood.py": flood})
    result = await run_agent("test", project=project, arguments=["-s"])
    assert result.status is TaskStatus.COMPLETED, result.error_message


async def test_it_runs_this_interpreter_without_our_settings_and_with_src_on_the_path(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    check = (
        "import os, sys, shop\n"
        "def test_it():\n"
        f"    assert sys.executable == {sys.executable!r}\n"
        "    assert not [name for name in os.environ if name.startswith('CONDUCTOR_')]\n"
        "    import test.support\n"
    )
    files: dict[str, str | bytes] = {"src/shop/__init__.py": "", "tests/test_it.py": check}
    project = make_project(tmp_path / "project", files)
    result = await run_agent("test", project=project)
    assert result.status is TaskStatus.COMPLETED, result.error_message


async def test_arguments_choose_tests(project: Path, run_agent: RunAgent) -> None:
    result = await run_agent("test", project=project, arguments=["-k", "nothing_like_this"])
    assert (result.error_message or "").startswith("pytest found no tests")
    result = await run_agent("test", project=project, arguments="-k greets")
    assert (result.error_message or "").startswith("the task's input 'arguments' must be a list of texts")
