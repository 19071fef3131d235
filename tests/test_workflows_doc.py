"""The workflow in docs/workflows.md runs as it is printed."""

import re
import shutil
from pathlib import Path

from tests.support.cli import conductor
from tests.support.projects import write_files

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "workflows.md").read_text()


def test_it_runs_as_printed(tmp_path: Path) -> None:
    [workflow] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    [name] = re.findall(r"Saved as `(.*?)` in a clone", TEXT)
    commands = re.findall(r"^\$ conductor (run .*)", TEXT, re.MULTILINE)
    assert len(commands) == 2
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    write_files(tmp_path, {name: workflow})
    for command in commands:
        done = conductor(tmp_path / "data", *command.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 of 3 tasks completed" in done.stdout
