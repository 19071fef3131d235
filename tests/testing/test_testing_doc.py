"""The tests in docs/testing.md pass."""

import re
from pathlib import Path

from tests.support.projects import write_files
from tests.testing.test_plugin import run_pytest

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()


def test_its_tests_pass_as_a_user_runs_them(tmp_path: Path) -> None:
    agent, *tests = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    settings = '[tool.pytest.ini_options]\nasyncio_mode = "auto"\n'
    files = {"pyproject.toml": settings, "loud.py": agent}
    files |= {f"test_{number}.py": code for number, code in enumerate(tests)}
    write_files(tmp_path, files)
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{TEXT.count('async def test_')} passed" in done.stdout
