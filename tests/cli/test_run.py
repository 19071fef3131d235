"""`conductor run` as its users run it: a process of its own, with nothing configured and nothing running."""

import json
import signal
from pathlib import Path

import pytest
import redis

from tests.support import rabbitmq
from tests.support.cli import Background, background, conductor, processes_of
from tests.support.projects import make_project, snapshot, write_files
from tests.support.waiting import wait_until_sync

EXAMPLES = Path(__file__).parents[2] / "examples"

TROUBLE = """\
name: trouble
vars: {project: ./project}
tasks:
  - {name: test, assigned_to: test, timeout_seconds: 2, input_data: {project: "${vars.project}"}}
  - {name: review, assigned_to: review, input_data: {project: "${vars.project}"}}
"""

REVIEW = """\
name: review
tasks: [{name: review, assigned_to: review, input_data: {project: ./project}}]
"""


def slow_project(root: Path) -> Path:
    """A project whose only test leaves a process behind, says that it runs, and does not end."""
    slow = (
        "import pathlib, subprocess, sys, time\n"
        "def test_slow():\n"
        "    command = [sys.executable, '-c', 'import time; time.sleep(600)', __file__]\n"
        "    subprocess.Popen(command, start_new_session=True)\n"
        f"    pathlib.Path({str(root / 'running')!r}).touch()\n"
        "    time.sleep(600)\n"
    )
    make_project(root / "project", {"tests/test_greeting.py": slow})
    return root


def test_the_shipped_workflow_runs_and_leaves_nothing_but_its_results(tmp_path: Path) -> None:
    data = tmp_path / "data"
    before = snapshot(EXAMPLES / "sample_project")
    done = conductor(data, "run", str(EXAMPLES / "workflow.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["succeeded"] is True
    assert [(task["assigned_to"], task["status"]) for task in document["tasks"]] == [
        ("coding", "completed"),
        ("review", "completed"),
        ("test_data", "completed"),
        ("test", "completed"),
        ("devops", "completed"),
        ("deploying", "completed"),
        ("monitor", "completed"),
    ]
    coding, review, test_data, test, devops, deploying, monitor = (
        task["output_data"] for task in document["tasks"]
    )
    # Once around the feedback loop: the first round's fixes were too few for the monitor, the second's do.
    assert "monitoring: judge: completed by monitor-run-1" in done.stderr
    assert "(error: findings: 12, more than 8 (max_findings))" in done.stderr
    assert "feedback: round 1: findings: 12, more than 8 (max_findings)" in done.stderr
    phases = [phase["phase"] for phase in document["phases"]]
    assert phases == ["development", "devops", "monitoring"] * 2
    assert coding["unsafe_fixes"] > 0
    assert {"complexity", "B904"} <= review["by_code"].keys()
    assert coding["remaining"] == review["findings_total"] - review["by_code"]["complexity"]
    assert f"{coding['remaining']} findings left" in done.stderr
    assert f"{coding['remaining']} findings, and 1 function of" in done.stderr
    assert test_data["cases"] > 100
    assert [skipped["name"] for skipped in test_data["skipped"]] == ["invoices.report.main"]
    assert (test["passed"], test["failed"]) == (22, 0)
    wheel = Path(devops["path"])
    assert wheel.is_relative_to(data / "workspaces" / document["workflow_id"])
    assert wheel.stat().st_size == devops["size_bytes"]
    assert deploying["installed"] == {"name": "invoices", "version": "1.4.0"}
    assert deploying["output"].startswith("usage: invoices ")
    assert "invoices 1.4.0 on Python" in done.stderr
    assert (monitor["healthy"], monitor["feedback"]["findings"]) == (True, [])
    assert f"copy of the project: {document['workspace']}\n" in done.stderr
    assert "7 of 7 tasks completed" in done.stderr
    assert snapshot(EXAMPLES / "sample_project") == before
    assert processes_of(data) == []


def test_a_task_that_fails_or_takes_too_long_fails_the_run_and_the_others_run(tmp_path: Path) -> None:
    data = tmp_path / "data"
    workflow = write_files(slow_project(tmp_path), {"workflow.yaml": TROUBLE}) / "workflow.yaml"
    done = conductor(data, "run", str(workflow), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "development: test: failed by test-run-1" in done.stdout
    assert "development: review: completed by review-run-1" in done.stdout
    assert "1 of 2 tasks completed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("loops", [0, 1])
def test_a_workflow_is_sent_back_as_often_as_is_said(loops: int, tmp_path: Path) -> None:
    text = REVIEW.replace("}}]", "}}, {name: judge, assigned_to: monitor, input_data: {thresholds: ")
    text += "      {max_findings: 0}}}]\n"
    make_project(tmp_path / "project")
    write_files(tmp_path, {"workflow.yaml": text})
    run = ["run", "workflow.yaml", "--max-feedback-loops", str(loops), "--json"]
    done = conductor(tmp_path / "data", *run, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["feedback_count"] == loops
    assert document["error_log"][-1]["error_code"] == "MAX_FEEDBACK_LOOPS"
    assert f"had all its feedback loops ({loops})" in done.stderr


def test_a_gate_that_is_configured_stops_the_run_and_says_why(tmp_path: Path) -> None:
    make_project(tmp_path / "project", {"tests/test_greeting.py": "def test_it():\n    assert False\n"})
    text = (
        TROUBLE.replace("timeout_seconds: 2, ", "")
        + "  - {name: build, assigned_to: devops, input_data: {project: ./project}}\n"
    )
    gate = "policies: [phase_gate: {required_success_rate: 1}]\n"
    write_files(tmp_path, {"workflow.yaml": text, "conductor.yaml": gate})
    done = conductor(tmp_path / "data", "run", "workflow.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [task["status"] for task in document["tasks"]] == ["failed", "completed", "skipped"]
    assert document["error_log"][-1]["error_code"] == "PHASE_GATE_CLOSED"
    assert "policy 'phase_gate': 50% of the tasks went well, 100% are required." in done.stderr


def test_ctrl_c_cancels_the_run_and_ends_everything(tmp_path: Path) -> None:
    workflow = write_files(slow_project(tmp_path), {"workflow.yaml": TROUBLE.replace(": 2,", ": 600,")})
    with background(tmp_path / "data", "run", str(workflow / "workflow.yaml")) as command:
        wait_for(command, tmp_path / "running")
        assert command.end(signal.SIGINT) == 130, command
    assert processes_of(tmp_path) == []
    assert "Traceback" not in "".join(command.out + command.err)


def test_a_second_run_has_its_own_server_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    workflow = write_files(slow_project(tmp_path), {"workflow.yaml": TROUBLE.replace(": 2,", ": 600,")})
    with background(tmp_path / "data", "run", str(workflow / "workflow.yaml")) as command:
        wait_for(command, tmp_path / "running")
        second = write_files(tmp_path, {"review.yaml": REVIEW}) / "review.yaml"
        done = conductor(tmp_path / "data", "run", str(second))
        assert done.returncode == 0, done.stderr
        done = conductor(tmp_path / "data", "up")
        assert done.returncode == 2
        assert "a 'conductor run' has its server in" in done.stderr
        command.process.kill()
        command.process.wait()
    wait_until_sync(lambda: not processes_of(tmp_path), timeout=30)


@pytest.mark.parametrize(("broker", "interrupted"), [("valkey", True), ("rabbitmq", False)])
def test_the_agents_of_a_run_leave_no_trace_on_a_broker_that_stays(
    broker: str, interrupted: bool, request: pytest.FixtureRequest, valkey_url: str, tmp_path: Path
) -> None:
    store = f"{valkey_url.rpartition('/')[0]}/11"
    url = store if broker == "valkey" else request.getfixturevalue("rabbitmq_url")
    write_files(tmp_path, {"conductor.yaml": f"broker_url: {url}\nredis: {{url: {store}}}\n"})
    workflow = REVIEW
    if interrupted:
        slow_project(tmp_path)
        workflow = TROUBLE.replace(": 2,", ": 600,")
    else:
        make_project(tmp_path / "project")
    write_files(tmp_path, {"workflow.yaml": workflow})
    with background(tmp_path / "data", "run", "workflow.yaml", cwd=tmp_path) as command:
        if interrupted:
            wait_for(command, tmp_path / "running")
            assert command.end(signal.SIGTERM) == 128 + signal.SIGTERM, command
        else:
            assert command.process.wait(60) == 0, command
    traces = words_in_redis(store)
    if broker == "rabbitmq":
        traces |= {
            " ".join(row) for kind in ("queues", "bindings") for row in rabbitmq.list_objects(kind, url)
        }
    assert any("conductor.type.review" in trace for trace in traces)
    assert not [trace for trace in traces if "-run-" in trace]


@pytest.mark.parametrize("configured", [False, True])
def test_a_data_dir_that_cannot_be_written_is_named(
    configured: bool, valkey_url: str, tmp_path: Path
) -> None:
    files = {"data": "a file", "review.yaml": REVIEW}
    if configured:
        files["conductor.yaml"] = f"broker_url: {valkey_url.rpartition('/')[0]}/11\n"
    write_files(tmp_path, {**files})
    for arguments in (["run", "review.yaml"], ["up", "--agents", "review"]):
        done = conductor(tmp_path / "data", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: data_dir: {tmp_path}/data")
        assert "a writable directory or set CONDUCTOR_DATA_DIR to one" in done.stderr


def words_in_redis(url: str) -> set[str]:
    """Every key, and every member of the sets; what a workflow or a result says is in neither."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        keys = set(client.keys())
        for key in list(keys):
            kind = client.type(key)
            keys |= set(client.smembers(key) if kind == "set" else ())
            keys |= set(client.zrange(key, 0, -1) if kind == "zset" else ())
        return keys


def wait_for(command: Background, path: Path) -> None:
    def there() -> bool:
        assert command.process.poll() is None, command
        return path.exists()

    wait_until_sync(there, timeout=60)


def test_an_agent_type_that_nobody_serves_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "from conductor.agents.base import BaseAgent\nAGENTS = {'coding': BaseAgent}\n"
    write_files(tmp_path / "own", {"workers/__init__.py": "", "workers/agents.py": own})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    text = "name: m\ntasks: [{name: watch, assigned_to: monitor}, {name: c, assigned_to: coding}]\n"
    workflow = write_files(tmp_path, {"workflow.yaml": text}) / "workflow.yaml"
    done = conductor(tmp_path / "data", "run", str(workflow))
    assert done.returncode == 2
    assert "a task for a monitor agent: none is running" in done.stderr
    assert processes_of(tmp_path) == []
