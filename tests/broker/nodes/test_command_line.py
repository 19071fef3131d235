"""`celery -A workers ...` with nothing else."""

import json
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.enums import AgentStatus, TaskStatus
from tests.broker.nodes.conftest import task
from tests.support.containers import LocalContainer
from tests.support.nodes import READY, AgentNode, Farm, run_celery, worker_command
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

#: The command line does not depend on the broker.
pytestmark = pytest.mark.parametrize("farm", ["valkey"], indirect=True)


def test_inspect_reaches_the_nodes_by_their_agents_ids(
    farm: Farm, agent: AgentNode, other: AgentNode
) -> None:
    done = run_celery("inspect", "ping", "--json", environment=farm.environment())
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for node in (agent, other):
        assert answers[node.hostname()] == {"ok": "pong"}


def test_flower_sees_nodes_and_tasks(farm: Farm, agent: AgentNode, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = farm.environment() | {"FLOWER_UNAUTHENTICATED_API": "true"}
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "workers",
        "flower",
        f"--port={port}",
        "--address=127.0.0.1",
    ]
    flower = LocalContainer("flower", command, environment, tmp_path, "Visit me at")
    try:
        flower.ready()

        def workers() -> bool:
            url = f"http://127.0.0.1:{port}/api/workers?refresh=true"
            with urllib.request.urlopen(url, timeout=10) as response:
                return agent.hostname() in json.load(response)

        assert wait_until_sync(workers, 20, 0.2)
    finally:
        flower.teardown()


def test_without_a_broker_the_worker_says_what_to_do(farm: Farm, tmp_path: Path) -> None:
    environment = _nowhere(farm, tmp_path)
    for arguments in (("worker", "--agent", "tests.support.agents:ObedientAgent"), ("inspect", "ping")):
        done = run_celery(*arguments, environment=environment)
        assert done.returncode != 0
        assert "conductor up" in done.stderr
        assert "CONDUCTOR_BROKER_URL" in done.stderr
        assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--agent", "nobody"], "Known agents: coding"),
        (["--agent", "tests.support.nothing:Agent"], "cannot be imported"),
        (["--agent", "tests.support.agents:notes"], "cannot be made"),
        (["--agent", "tests.support.waiting:wait_until"], "write @conductor.agent(TYPE) above it"),
        (["--agent", "tests.support.agents:UnmakeableAgent"], "no licence key"),
        (["--agent", "tests.support.agents:ObedientAgent", "-n", "a:b@h"], "'a:b'"),
        (["--agent", "tests.support.agents:ObedientAgent", "-c", "4"], "--concurrency"),
        (["--agent", "tests.support.agents:ObedientAgent", "-P", "threads"], "--pool"),
        (["--agent", "tests.support.agents:ObedientAgent", "-Q", "other"], "--queues"),
    ],
)
def test_a_worker_that_cannot_be_says_why(farm: Farm, options: list[str], word: str) -> None:
    done = run_celery("worker", *options, environment=farm.environment())
    assert done.returncode != 0
    assert word in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def (:", "cannot be imported: SyntaxError: invalid syntax (broken_agent.py, line 1)."),
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3 (broken_agent.py, line 2)."),
    ],
)
def test_a_mistake_in_the_users_module_is_told_as_that(
    farm: Farm, tmp_path: Path, text: str, word: str
) -> None:
    write_files(tmp_path, {"broken_agent.py": text})
    environment = farm.environment() | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    done = run_celery("worker", "--agent", "broken_agent:Agent", environment=environment)
    assert done.returncode != 0
    assert word in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_node_whose_agent_does_not_start_ends_and_says_why(farm: Farm, tmp_path: Path) -> None:
    command = worker_command("--agent", "tests.support.agents:UnstartableAgent")
    node = LocalContainer("unstartable", command, farm.environment(), tmp_path, READY)
    try:
        node.wait(60)
        assert "no licence key" in node.logs()
        assert READY not in node.logs()
    finally:
        node.teardown()


async def test_agent_and_id_may_come_from_the_environment(
    farm: Farm, conductor: Conductor, tmp_path: Path
) -> None:
    environment = farm.environment() | {
        "CONDUCTOR_NODE__AGENT": "tests.support.agents:ThirdAgent",
        "CONDUCTOR_NODE__AGENT_ID": "from-the-environment",
    }
    node = LocalContainer("environment", worker_command(), environment, tmp_path, READY)
    try:
        node.ready()
        assert f"Node from-the-environment@{socket.gethostname()} {READY} from-the-environment" in node.logs()
        handle = await conductor.dispatch(task(assigned_to=None), "from-the-environment")
        assert (await handle.result(20)).status is TaskStatus.COMPLETED
    finally:
        node.teardown()


async def test_a_node_with_nothing_named_hosts_one_agent_of_each(
    farm: Farm, conductor: Conductor, tmp_path: Path
) -> None:
    node = LocalContainer("all", worker_command("-n", "w1@%h"), farm.environment(), tmp_path, READY)
    try:
        node.ready()
        for kind in ("coding", "review", "test_data", "test", "devops", "deploying", "monitor"):
            state = await conductor.state.get_agent_state(f"{kind}-w1")
            assert state is not None
            assert (state.status, state.agent_type.value) == (AgentStatus.IDLE, kind)
    finally:
        node.teardown()


def test_a_node_without_a_name_gets_one_that_says_what_it_is(farm: Farm, tmp_path: Path) -> None:
    command = worker_command("--agent", "tests.support.agents:ThirdAgent")
    node = LocalContainer("nameless", command, farm.environment(), tmp_path, READY)
    try:
        node.ready()
        assert f"thirdagent-{socket.gethostname()}-{node.pid}" in node.logs()
        os.kill(node.pid, signal.SIGTERM)
        assert node.wait() == 0
    finally:
        node.teardown()


def _nowhere(farm: Farm, tmp_path: Path) -> dict[str, str]:
    environment = farm.environment()
    del environment["CONDUCTOR_BROKER_URL"], environment["CONDUCTOR_REDIS__URL"]
    return environment | {"CONDUCTOR_DATA_DIR": str(tmp_path / "nothing-here")}
