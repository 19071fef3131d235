"""`conductor up`, and the commands that talk to what it started: one server and its nodes for all tests."""

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.cli.serving import example_input
from conductor.core.enums import MessageType
from conductor.core.messages import AgentMessage
from tests.support.cli import Background, background, conductor, environment, processes_of
from tests.support.containers import LocalContainer
from tests.support.nodes import READY, worker_command
from tests.support.projects import make_project, write_files
from tests.support.waiting import wait_until_sync


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    data = tmp_path_factory.mktemp("up") / "data"
    with background(data, "up", "--agents", "coding,review", "--json") as command:
        command.wait_for_event(event="ready")
        yield command
        assert command.end(signal.SIGTERM) == 0, command
    assert processes_of(data) == []


@pytest.fixture
def data(up: Background) -> Path:
    return up.data_dir


def test_it_says_how_to_reach_it(up: Background) -> None:
    ready = up.wait_for_event(event="ready")
    assert ready["agents"] == ["coding-1", "review-1"]
    assert ready["broker_url"].startswith("redis://127.0.0.1:")
    assert any("conductor run WORKFLOW.yaml" in line for line in up.err)
    assert any("conductor dispatch --agent coding-1 --input project=PATH" in line for line in up.err)
    assert example_input("monitor") == "workflow_id=VALUE"
    assert example_input("own:Agent") == "KEY=VALUE"
    assert (up.data_dir / "logs" / "coding-1.log").stat().st_size > 0


def test_dispatch_gives_a_task_to_an_agent_and_shows_its_result(data: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project")
    done = conductor(data, "dispatch", "-t", "review", "-i", "project=project", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["agent_id"], result["status"]) == ("review-1", "completed")
    assert result["output_data"]["findings_total"] == 1
    assert "review task: completed by review-1" in done.stderr


def test_dispatch_fails_with_the_agents_reason(data: Path) -> None:
    done = conductor(data, "dispatch", "-a", "coding-1", "-i", "project=/nowhere/at/all")
    assert done.returncode == 1
    assert "there is no directory /nowhere/at/all" in done.stdout
    assert "Traceback" not in done.stderr
    [show, replay] = re.findall(r"'conductor ([^']+)'", done.stderr)
    shown = conductor(data, *show.split())
    assert "there is no directory /nowhere/at/all" in shown.stdout, shown.stderr
    again = conductor(data, *replay.split())
    assert "replayed 1 dead letter" in again.stdout, again.stderr


def test_dispatch_to_nobody_is_refused_unless_nobody_waits(data: Path) -> None:
    done = conductor(data, "dispatch", "-t", "monitor")
    assert done.returncode == 1
    assert "no monitor agent is running: start one with 'conductor up'" in done.stderr
    done = conductor(data, "dispatch", "-t", "monitor", "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "pending"


def test_dispatch_to_an_agent_of_another_type_is_refused(data: Path) -> None:
    done = conductor(data, "dispatch", "-a", "coding-1", "-t", "review", "-i", "project=/x")
    assert done.returncode == 2
    assert "agent coding-1 is a coding agent, not a review one" in done.stderr


def test_listen_shows_what_is_published(data: Path) -> None:
    with background(data, "listen", "conductor:workflow:*", "--count", "2", "--json") as listener:
        listener.wait_for_error_line("listening to conductor:workflow:*")
        for number in range(2):
            payload = json.dumps({"agent_id": "me", "status": "idle", "message": f"[bold]{number}"})
            done = conductor(data, "publish", "conductor:workflow:w1", "--payload", "-", stdin=payload)
            assert done.returncode == 0, done.stderr
        assert listener.process.wait(30) == 0, listener
    wait_until_sync(lambda: len(listener.out) == 2)
    assert [event["payload"]["message"] for event in listener.events] == ["[bold]0", "[bold]1"]


def test_listen_for_a_person_ends_with_ctrl_c(data: Path) -> None:
    with background(data, "listen", "conductor:broadcast") as listener:
        listener.wait_for_error_line("listening")
        conductor(data, "publish", "conductor:broadcast", "--payload", '{"note": "[red]x"}', "--sender", "me")
        wait_until_sync(lambda: any('"note": "[red]x"' in line for line in listener.out))
        assert listener.end(signal.SIGINT) == 0, listener
    assert any("status_update from me" in line for line in listener.out)


def test_under_nohup_a_command_survives_the_end_of_its_terminal(data: Path) -> None:
    with background(data, "listen", "conductor:broadcast", "--count", "1", nohup=True) as listener:
        listener.wait_for_error_line("listening")
        os.kill(listener.process.pid, signal.SIGHUP)
        assert conductor(data, "publish", "conductor:broadcast").returncode == 0
        assert listener.process.wait(30) == 0, listener


def test_listen_that_gets_less_than_it_waits_for_fails(data: Path) -> None:
    done = conductor(data, "listen", "conductor:errors", "--count", "1", "--timeout", "0.3")
    assert done.returncode == 1


def test_request_shows_the_agents_answer(data: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    task = {"name": "asked for", "assigned_to": "coding", "input_data": {"project": str(project)}}
    done = conductor(
        data, "request", "conductor:agent:coding-1", "--payload", json.dumps({"task": task}), "--json"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["message_type"] == "task_result"
    assert answer["payload"]["result"]["output_data"]["files_changed"] == ["demo/greeting.py"]


def test_a_request_that_is_an_error_or_unanswered_fails(data: Path) -> None:
    done = conductor(data, "request", "conductor:agent:coding-1", "--payload", '{"task": 1}')
    assert done.returncode == 1
    assert '"error_code"' in done.stdout
    assert "Traceback" not in done.stdout
    assert '{\\"task\\": {\\"name\\": ..., ' in done.stdout
    done = conductor(data, "-v", "request", "conductor:agent:coding-1", "--payload", '{"task": 1}')
    assert "Traceback" in done.stdout
    task = {"name": "asked for", "assigned_to": "coding", "input_data": {"project": "/nowhere/at/all"}}
    done = conductor(data, "request", "conductor:agent:coding-1", "--payload", json.dumps({"task": task}))
    assert done.returncode == 1
    assert "there is no directory /nowhere/at/all" in done.stdout
    done = conductor(data, "request", "conductor:nobody", "--timeout", "0.3")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


async def test_a_result_of_somebody_elses_making_is_an_answer(up: Background) -> None:
    channel = "conductor:somebody"
    async with KombuMessageBus(up.wait_for_event(event="ready")["broker_url"]) as bus:

        async def answer(message: AgentMessage) -> None:
            response = message.create_response("somebody", MessageType.TASK_RESULT, {"in": "own words"})
            await bus.publish("conductor:response", response)

        await bus.subscribe(channel, answer)
        done = await asyncio.to_thread(conductor, up.data_dir, "request", channel)
    assert (done.returncode, done.stderr) == (0, "")
    assert "own words" in done.stdout


def test_run_uses_the_agents_that_are_there_and_starts_the_others(
    up: Background, data: Path, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project")
    text = (
        "name: mixed\nvars: {project:}\ntasks:\n"
        '  - {name: c, assigned_to: coding, input_data: {project: "${vars.project}"}}\n'
        '  - {name: d, assigned_to: devops, input_data: {project: "${vars.project}"}}\n'
    )
    write_files(tmp_path, {"workflow.yaml": text})
    done = conductor(data, "run", "workflow.yaml", "--set", f"project={project}", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    agents = [task["agent_id"] for task in json.loads(done.stdout)["tasks"]]
    assert agents == ["coding-1", "devops-run-1"]
    assert up.process.poll() is None
    assert not [line for line in processes_of(data) if "devops-run-1" in line]


def test_a_node_that_is_killed_comes_back(up: Background, data: Path, tmp_path: Path) -> None:
    node = next(
        process
        for process in psutil.process_iter()
        if "coding-1@%h" in (words := process.cmdline()) and str(data) == process.cwd() and words[1] == "-m"
    )
    os.kill(node.pid, signal.SIGKILL)
    ended = up.wait_for_event(event="agent_ended", agent_id="coding-1")
    assert "starts again" in ended["message"]
    wait_until_sync(
        lambda: (
            len([e for e in up.events if e["event"] == "agent_ready" and e["agent_id"] == "coding-1"]) == 2
        ),
        timeout=60,
    )
    make_project(tmp_path / "project")
    done = conductor(data, "dispatch", "-t", "coding", "-i", "project=project", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_it_starts_ends_everything(tmp_path: Path) -> None:
    with background(tmp_path / "data", "up", "--agents", "review") as command:
        wait_until_sync(lambda: any(line.startswith("broker") for line in command.out), timeout=60)
        assert command.end(signal.SIGINT) == 0, command
    assert processes_of(tmp_path) == []
    assert threading.active_count() < 50


def test_two_that_start_at_once_take_different_ids(valkey_url: str, tmp_path: Path) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/10"
    write_files(tmp_path, {"conductor.yaml": f"broker_url: {url}\n"})
    up = ["up", "--agents", "review", "--json"]
    with (
        background(tmp_path / "one", *up, cwd=tmp_path) as one,
        background(tmp_path / "two", *up, cwd=tmp_path) as two,
    ):
        ready = [command.wait_for_event(event="ready")["agents"] for command in (one, two)]
        assert sorted(ready) == [["review-1"], ["review-2"]]
    with background(tmp_path / "one", *up, cwd=tmp_path) as again:
        assert again.wait_for_event(event="ready")["agents"] == ["review-1"]


def test_an_agent_that_cannot_start_is_explained_with_the_end_of_its_log(tmp_path: Path) -> None:
    agent = (
        "from conductor.agents.base import BaseAgent\n"
        "from conductor.core.enums import AgentType\n"
        "class Broken(BaseAgent):\n"
        "    def __init__(self, agent_id, config):\n"
        "        super().__init__(agent_id, AgentType.MONITOR, config)\n"
        "    async def _on_start(self):\n"
        "        raise RuntimeError('no licence')\n"
        "    async def _validate_task(self, task):\n        return True\n"
        "    async def _execute(self, task):\n        return None\n"
    )
    write_files(tmp_path, {"mine.py": agent})
    done = conductor(tmp_path / "data", "up", "--agents", "mine:Broken", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "the node broken-1 ended while starting" in done.stderr
    assert "no licence" in done.stderr
    assert "Ctrl-C" not in done.stdout
    assert processes_of(tmp_path) == []


def test_who_stops_the_server_names_those_that_lose_it_and_they_say_the_way_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with background(data, "up", "--agents", "review") as owner:
        wait_until_sync(lambda: any("Ready." in line for line in owner.out), timeout=60)
        node = LocalContainer(
            "node", worker_command("--agent", "devops", "-n", "own@h"), environment(data), tmp_path, READY
        )
        try:
            node.ready()
            with background(data, "up", "--agents", "coding") as other:
                wait_until_sync(lambda: any("Ready." in line for line in other.out), timeout=60)
                assert owner.end(signal.SIGINT) == 0, owner
                owner.wait_for_error_line("coding-1, own, which others started, can do nothing without this")
                way_out = "start 'conductor up', and then this one again"
                other.wait_for_error_line(way_out)
                wait_until_sync(lambda: way_out in node.logs(), timeout=60)
                assert other.end(signal.SIGINT) == 0, other
        finally:
            node.teardown()
    assert processes_of(tmp_path) == []


def test_a_module_of_the_users_may_be_called_as_one_of_ours(tmp_path: Path) -> None:
    agent = """
from conductor import agent


@agent("test")
async def count(data: dict) -> dict:
    return {"n": 1}
"""
    write_files(tmp_path, {"words.py": agent, "workers.py": ""})
    data = tmp_path / "data"
    with background(data, "up", "--agents", "words:count", "--json", cwd=tmp_path) as command:
        command.wait_for_event(event="ready")
        done = conductor(data, "dispatch", "-a", "count-1", "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["output_data"] == {"n": 1}
        assert command.end() == 0
