"""The README's programs do what it says."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from conductor.store.embedded import EmbeddedServer
from tests.support.cli import background, conductor, environment
from tests.support.waiting import wait_until_sync

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
AGENT, PROGRAM = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user has saved the agent."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "shouter.py").write_text(AGENT)
    return directory


@pytest.fixture(scope="module")
def data(here: Path) -> Iterator[Path]:
    with background(here / "data", "up", "--agents", "review,shouter:shout", "--json", cwd=here) as up:
        up.wait_for_event(event="ready")
        yield here / "data"


def without_seconds(text: str) -> str:
    return re.sub(r"in \d+\.\d s", "in N s", text)


def test_the_ten_lines_are_ten_at_most() -> None:
    assert len([line for line in AGENT.splitlines() if line.strip()]) <= 10


def test_the_ten_lines_are_an_agent_that_does_what_is_shown(data: Path) -> None:
    [(options, shown)] = re.findall(
        r"^\$ conductor dispatch (--agent shout-1 .*)\n([^`]+)```", README, re.MULTILINE
    )
    done = conductor(data, "dispatch", *options.split())
    assert done.returncode == 0, done.stderr
    assert without_seconds(done.stdout) == without_seconds(shown)


def test_it_is_hosted_by_celery_beside_the_others(data: Path, here: Path) -> None:
    [(host, options)] = re.findall(
        r"^\$ celery (-A workers worker --agent .*)\n\$ conductor (dispatch .*)\n", README, re.MULTILINE
    )
    # The script, as a user types it: unlike `python -m celery` it does not look in the working directory.
    celery = str(Path(sys.executable).with_name("celery"))
    node = subprocess.Popen([celery, *host.split()], env=environment(data), cwd=here)
    try:
        with redis.Redis.from_url(EmbeddedServer.running(data) or "") as server:
            wait_until_sync(
                lambda: (
                    node.poll() is not None or server.hexists("conductor:agent:shouter-1", "last_heartbeat")
                ),
                timeout=60,
            )
        assert node.poll() is None, "the node ended"
        done = conductor(data, *options.split(), "--json")
    finally:
        node.terminate()
        node.wait(60)
    assert done.returncode == 0, done.stderr
    assert '"HELLO"' in done.stdout
    assert "40 % shouting" in done.stderr


def test_a_program_gets_a_review(data: Path, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(PROGRAM)
    run = [sys.executable, str(tmp_path / "look.py")]
    done = subprocess.run(
        run, env=environment(data), cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"completed \{'.*': \d+.*\}\n", done.stdout)


def test_a_request_looks_like_that(data: Path) -> None:
    [command] = re.findall(r"^\$ (conductor request .*)", README, re.MULTILINE)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment(data) | {"PATH": path}, cwd=ROOT, capture_output=True,
        text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"findings_total"' in done.stdout


def test_a_program_that_runs_elsewhere_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "look.py"], env=environment(data), cwd=tmp_path, capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("failed ")
    assert str(tmp_path / "examples" / "sample_project") in done.stdout


def test_the_agent_of_the_workflows_type_is_ended_before_the_workflow_runs_again() -> None:
    workflow = (ROOT / "examples" / "workflow.yaml").read_text()
    [kind] = re.findall(r'^@agent\("(.*)"\)', AGENT, re.MULTILINE)
    assert f"assigned_to: {kind}\n" in workflow
    assert f"This one is a `{kind}`" in README
    assert "end it with Ctrl-C" in README
