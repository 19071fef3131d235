"""`conductor logs`: past runs, and a run that goes on."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.cli import background, conductor
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

SLOW = """
import asyncio
from pathlib import Path

from conductor import agent


@agent("coding")
async def patient(data: dict[str, str]) -> dict[str, str]:
    while "go" in data and not Path(data["go"]).exists():
        await asyncio.sleep(0.02)
    if "fail" in data:
        raise ValueError(data["fail"])
    return {}
"""
FLOW = """
name: three steps
tasks:
  - {name: quick, assigned_to: coding}
  - {name: slow, assigned_to: coding, depends_on: [quick], input_data: {go: "${vars.go}"}}
  - {name: wrong, assigned_to: coding, depends_on: [slow], input_data: {fail: no such luck}}
vars: {go: ""}
"""
STEPS = [
    ("workflow_started", None),
    ("phase_started", None),
    ("task_started", "quick"),
    ("task_ended", "quick"),
    ("task_started", "slow"),
    ("task_ended", "slow"),
    ("task_started", "wrong"),
    ("task_ended", "wrong"),
    ("phase_ended", None),
]


def steps(lines: list[str]) -> list[tuple[Any, Any]]:
    events = [json.loads(line) for line in lines]
    assert all(first["at"] <= second["at"] for first, second in pairwise(events))
    return [(event["event"], event.get("task_name")) for event in events]


def test_a_run_is_followed_from_its_beginning_to_its_end_and_looked_at_afterwards(tmp_path: Path) -> None:
    write_files(tmp_path, {"patient.py": SLOW, "flow.yaml": FLOW})
    data, go = tmp_path / "data", tmp_path / "go"
    with background(data, "up", "--agents", "patient:patient", "--json", cwd=tmp_path) as up:
        up.wait_for_event(event="ready")
        flow = ["run", "flow.yaml", "--set", f"go={go}", "--id", "three-steps-1"]
        with background(data, *flow, cwd=tmp_path) as run:
            wait_until_sync(
                lambda: "task_started" in conductor(data, "logs", "three-steps-1", cwd=tmp_path).stdout,
                timeout=60,
            )
            with background(data, "logs", "three-steps-1", "-f", "--json", cwd=tmp_path) as log:
                wait_until_sync(lambda: len(log.out) >= 5, timeout=60)
                assert steps(log.out)[:5] == STEPS[:5]
                go.touch()
                assert log.process.wait(60) == 0
                wait_until_sync(lambda: not log._reading())
                run.process.wait(60)
            seen = log.out
        assert steps(seen)[: len(STEPS)] == STEPS
        assert steps(seen)[-1] == ("workflow_ended", None)
    # Nothing runs any more: the server is started to look.
    past = conductor(data, "logs", "three-ste", "--json", cwd=tmp_path)
    assert past.returncode == 0, past.stderr
    assert past.stdout.splitlines() == [line.rstrip("\n") for line in seen]
    text = conductor(data, "logs", "three-steps-1", cwd=tmp_path).stdout
    [failure] = [event for event in map(json.loads, past.stdout.splitlines()) if event.get("error_code")]
    assert (failure["task_name"], failure["error_code"]) == ("wrong", "UNKNOWN_ERROR")
    assert "task_ended        failed" in text
    phase = next(line for line in text.splitlines() if "phase_ended" in line)
    assert phase.endswith("phase_ended       failed      development")
    assert "wrong by patient-1 in 0.0 s: ValueError: no such luck" in text


def test_a_run_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    done = conductor(tmp_path / "data", "logs", "never-was", cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no workflow 'never-was'" in done.stderr
