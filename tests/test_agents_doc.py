"""The programs in docs/agents.md do what it says."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import background, conductor, environment
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

TEXT = (Path(__file__).parents[1] / "docs" / "agents.md").read_text()
FUNCTION, PROGRAM, TESTS, CLASS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all of them."""
    files = {"lengths.py": FUNCTION, "ask.py": PROGRAM, "test_lengths.py": TESTS, "witness.py": CLASS}
    return write_files(tmp_path_factory.mktemp("agents-doc"), {**files})


@pytest.fixture(scope="module")
def data(here: Path) -> Iterator[Path]:
    agents = "lengths:line_lengths,witness:Witness"
    with background(here / "data", "up", "--agents", agents, "--json", cwd=here) as up:
        assert up.wait_for_event(event="ready")["agents"] == ["line_lengths-1", "witness-1"]
        yield here / "data"


def test_a_program_gets_the_model_and_a_witness_has_heard_of_it(
    here: Path, data: Path, tmp_path: Path
) -> None:
    write_files(tmp_path, {"sub/long.py": "#" * 81})
    done = subprocess.run(
        [sys.executable, here / "ask.py"],
        env=environment(data),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 file: ['{tmp_path}/sub/long.py:1']\n"
    ask = ["dispatch", "--agent", "witness-1", "--json"]
    wait_until_sync(lambda: "line_lengths-1: reading long.py" in conductor(data, *ask).stdout, timeout=30)


def test_a_line_of_the_log_looks_like_that(here: Path, data: Path) -> None:
    asked = ["--agent", "line_lengths-1", "--input", f"project={here}"]
    assert conductor(data, "dispatch", *asked).returncode == 0
    [shown] = [json.loads(line) for line in TEXT.splitlines() if line.startswith('{"timestamp"')]

    def written() -> list[dict[str, Any]]:
        lines = map(json.loads, (data / "logs" / "line_lengths-1.log").read_text().splitlines())
        return [line for line in lines if line["event"].endswith(" files read")]

    line = wait_until_sync(written)[-1]
    assert list(line) == list(shown)
    changing = ("timestamp", "message_id", "task_id", "node", "event")
    assert {**line, **{name: shown[name] for name in changing}} == shown


def test_its_tests_pass_as_a_user_runs_them(here: Path, tmp_path: Path) -> None:
    [(plugins, arguments)] = re.findall(r"^\$ pip install (.*)\n\$ pytest (.*)\n", TEXT, re.MULTILINE)
    assert plugins == "pytest pytest-asyncio"
    pytest_script = Path(sys.executable).with_name("pytest")
    done = subprocess.run(
        [pytest_script, *arguments.split()],
        env=environment(tmp_path),
        cwd=here,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_its_tests_pass_with_the_setting_it_names(here: Path, tmp_path: Path) -> None:
    assert '`asyncio_mode = "auto"` below `[tool.pytest.ini_options]`' in TEXT
    settings = '[tool.pytest.ini_options]\nasyncio_mode = "auto"\n'
    files = {"pyproject.toml": settings, "lengths.py": FUNCTION, "test_lengths.py": TESTS}
    write_files(tmp_path, {**files})
    pytest_script = Path(sys.executable).with_name("pytest")
    done = subprocess.run([pytest_script], cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
