"""The quick start does what it says."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.cli import background, conductor, environment
from tests.support.projects import write_files

DOCS = Path(__file__).parents[1] / "docs"


def test_the_quick_start_runs(tmp_path: Path) -> None:
    text = (DOCS / "quickstart.md").read_text()
    files = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', text, re.DOTALL))
    write_files(tmp_path, files)
    [up] = re.findall(r"^\$ conductor (up .*)", text, re.MULTILINE)
    [(dispatch, shown)] = re.findall(r"^\$ conductor (dispatch .*)\n([^`]+)```", text, re.MULTILINE)
    [printed] = re.findall(r"It prints `(.*?)`", text)
    data = tmp_path / "data"
    with background(data, *up.split(), "--json", cwd=tmp_path) as agents:
        agents.wait_for_event(event="ready")
        done = conductor(data, *dispatch.split())
        assert re.sub(r"\d+\.\d s", "N s", done.stdout) == re.sub(r"\d+\.\d s", "N s", shown)
        asked = subprocess.run(
            [sys.executable, "ask.py"], env=environment(data), cwd=tmp_path, capture_output=True, text=True,
            timeout=90, check=False,
        )  # fmt: skip
    assert asked.stdout == f"{printed}\n", asked.stderr
