"""`conductor resume` and `conductor cancel`: a run outlives its process, and ends when it is told to."""

import json
import signal
from pathlib import Path

import pytest

from tests.support.cli import Background, background, conductor, processes_of
from tests.support.projects import make_project, write_files
from tests.support.waiting import wait_until_sync

#: What a killed node held is back soon.
SETTINGS = "work: {visibility_timeout: 3, touch_interval: 0.5, restore_interval: 0.5}\n"
WORKFLOW = """\
name: patient
vars: {project: ./project}
tasks:
  - {name: review, assigned_to: review, input_data: {project: "${vars.project}"}}
  - {name: test, assigned_to: test, timeout_seconds: 600, input_data: {project: "${vars.project}"}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project whose test says that it runs, and ends when there is a file `go`."""
    patient = (
        "import pathlib, time\n"
        "def test_patient():\n"
        f"    here = pathlib.Path({str(tmp_path)!r})\n"
        "    (here / 'running').touch()\n"
        "    while not (here / 'go').exists():\n"
        "        time.sleep(0.05)\n"
    )
    make_project(tmp_path / "project", {"tests/test_greeting.py": patient})
    write_files(tmp_path, {"workflow.yaml": WORKFLOW, "conductor.yaml": SETTINGS})
    return tmp_path


def id_in(lines: list[str]) -> str:
    return next(line.split()[1] for line in lines if line.startswith("workflow "))


def wait_for(command: Background, path: Path) -> None:
    def there() -> bool:
        assert command.process.poll() is None, command
        return path.exists()

    wait_until_sync(there, timeout=60)


def test_a_killed_run_is_resumed_and_what_was_done_is_not_done_again(place: Path) -> None:
    data = place / "data"
    with background(data, "run", "workflow.yaml", cwd=place) as command:
        wait_for(command, place / "running")
        workflow_id = id_in(list(command.out))
        command.process.kill()
        command.process.wait()
    wait_until_sync(lambda: not processes_of(data), timeout=30)
    (place / "running").unlink()
    (place / "go").touch()
    done = conductor(data, "resume", workflow_id, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["workflow_id"], document["succeeded"]) == (workflow_id, True)
    assert [task["status"] for task in document["tasks"]] == ["completed", "completed"]
    assert "development: review: in_progress" not in done.stderr
    assert "development: test: completed by test-run-" in done.stderr
    assert "2 of 2 tasks completed" in done.stderr
    again = conductor(data, "resume", workflow_id[:8], cwd=place)
    assert again.returncode == 0, again.stderr
    assert "starting agents" not in again.stdout
    assert "2 of 2 tasks completed" in again.stdout
    late = conductor(data, "cancel", workflow_id, cwd=place)
    assert (late.returncode, late.stdout) == (
        1,
        f"workflow {workflow_id} had ended before: completed, 2 of 2 tasks completed\n",
    )
    assert processes_of(data) == []


def test_a_run_is_cancelled_from_another_process(place: Path) -> None:
    data = place / "data"
    with background(data, "run", "workflow.yaml", cwd=place) as command:
        wait_for(command, place / "running")
        workflow_id = id_in(list(command.out))
        done = conductor(data, "cancel", workflow_id, cwd=place)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"workflow {workflow_id} is cancelled, 1 of 2 tasks completed\n"
        assert command.process.wait(60) == 1, command
    text = "".join(command.out)
    assert f"Workflow {workflow_id} was cancelled." in text
    assert "1 of 2 tasks completed" in text
    assert processes_of(data) == []


def test_a_killed_run_can_be_cancelled_and_is_not_resumed_then(place: Path) -> None:
    data = place / "data"
    with background(data, "run", "workflow.yaml", cwd=place) as command:
        wait_for(command, place / "running")
        workflow_id = id_in(list(command.out))
        command.process.kill()
        command.process.wait()
    wait_until_sync(lambda: not processes_of(data), timeout=30)
    done = conductor(data, "cancel", workflow_id, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "cancelled"
    done = conductor(data, "resume", workflow_id, cwd=place)
    assert done.returncode == 1
    assert "1 of 2 tasks completed" in done.stdout
    again = conductor(data, "cancel", workflow_id, cwd=place)
    assert (again.returncode, again.stdout) == (
        0,
        f"workflow {workflow_id} is cancelled, 1 of 2 tasks completed\n",
    )


@pytest.mark.parametrize("command", ["resume", "cancel"])
def test_an_unknown_id_is_one_sentence(command: str, valkey_url: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"conductor.yaml": f"broker_url: {valkey_url.rpartition('/')[0]}/11\n"})
    done = conductor(tmp_path / "data", command, "no-such-run", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"no workflow 'no-such-run' in {valkey_url.rpartition('/')[0]}/11: take the id" in done.stderr
    assert "set CONDUCTOR_REDIS__URL" in done.stderr


def test_ctrl_c_ends_a_resumed_run_too(place: Path) -> None:
    data = place / "data"
    with background(data, "run", "workflow.yaml", cwd=place) as command:
        wait_for(command, place / "running")
        workflow_id = id_in(list(command.out))
        command.process.kill()
        command.process.wait()
    wait_until_sync(lambda: not processes_of(data), timeout=30)
    (place / "running").unlink()
    with background(data, "resume", workflow_id, cwd=place) as command:
        wait_for(command, place / "running")
        assert command.end(signal.SIGINT) == 130, command
    assert processes_of(data) == []


def test_a_run_that_is_given_an_id_goes_on_under_it_and_is_shown_when_it_has_ended(place: Path) -> None:
    data = place / "data"
    run = ["run", "workflow.yaml", "--id", "nightly-7"]
    with background(data, *run, cwd=place) as command:
        wait_for(command, place / "running")
        assert id_in(list(command.out)) == "nightly-7"
        refused = conductor(data, "run", "workflow.yaml", "--id", "other", cwd=place)
        assert refused.returncode == 2
        assert "a 'conductor run' has its server in" in refused.stderr
        command.process.kill()
        command.process.wait()
    wait_until_sync(lambda: not processes_of(data), timeout=30)
    (place / "go").touch()
    done = conductor(data, *run, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "development: review: in_progress" not in done.stdout
    assert "2 of 2 tasks completed" in done.stdout
    again = conductor(data, *run, cwd=place)
    assert again.returncode == 0, again.stderr
    assert "starting agents" not in again.stdout
    assert "2 of 2 tasks completed" in again.stdout
    write_files(place, {"workflow.yaml": WORKFLOW.replace("timeout_seconds: 600", "timeout_seconds: 60")})
    changed = conductor(data, *run, cwd=place)
    assert changed.returncode == 1
    assert "run 'nightly-7' is of another workflow" in changed.stderr
    assert processes_of(data) == []
