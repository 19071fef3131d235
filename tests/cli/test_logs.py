"""What commands and their nodes log: JSON in files, text for a person, and JSON for who asks for it."""

import json
import signal
from pathlib import Path

import pytest

from tests.support.cli import background, conductor
from tests.support.projects import make_project
from tests.support.waiting import wait_until_sync


def test_up_keeps_json_in_a_file_and_shows_text(tmp_path: Path) -> None:
    data, project = tmp_path / "data", tmp_path / "project"
    make_project(project)
    with background(data, "-v", "up", "--agents", "review", "--json") as up:
        up.wait_for_event(event="ready")
        asked = ["dispatch", "-a", "review-1", "-i", f"project={project}", "--json"]
        result = json.loads(conductor(data, *asked).stdout)
        up.wait_for_error_line("succeeded in")
        assert up.end(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in (data / "logs" / "review-1.log").read_text().splitlines()]
    events = [line["event"] for line in lines]
    start = next(i for i, event in enumerate(events) if event.endswith("received"))
    end = next(i for i, event in enumerate(events) if "succeeded in" in event)
    assert {line["task_id"] for line in lines[start : end + 1]} == {result["task_id"]}
    shown = [line for line in up.err if line.startswith("[review-1] ")]
    assert [line for line in shown if "received" in line and f"task_id={result['task_id']}" in line]
    assert not [line for line in shown if '{"' in line.split("event", 1)[0]]


def test_who_asks_for_json_gets_it_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    config = tmp_path / "conductor.yaml"
    config.write_text("log_format: json\n")
    with background(tmp_path / "data", "-v", "-c", str(config), "up", "--agents", "review", "--json") as up:
        up.wait_for_event(event="ready")
        wait_until_sync(lambda: [line for line in up.err if "is ready:" in line], timeout=30)
        up.end(signal.SIGTERM)
    lines = [json.loads(line) for line in up.err if line.startswith("{")]
    assert [line for line in lines if "is ready:" in line["event"] and line["agent_id"] == "review-1"]
    assert not [line for line in up.err if line.startswith("[review-1]")]


def test_the_reason_why_a_node_does_not_start_is_text(tmp_path: Path) -> None:
    done = conductor(
        tmp_path / "data", "up", "--agents", "tests.support.agents:UnstartableAgent", cwd=Path.cwd()
    )
    assert done.returncode == 1
    assert "no licence key" in done.stderr
    assert '"event"' not in done.stderr
