"""`conductor status`, `agents`, `workflows`, `tasks` and `show`, on each kind of broker, with real nodes."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
import yaml

from conductor.core.enums import AgentType, TaskStatus
from conductor.core.fields import new_id, utc_now
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager
from tests.support.cli import COMMAND, background, conductor, environment
from tests.support.places import AGENTS, Place, own_servers, place_on
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

WORKFLOW = """
name: two words
tasks:
  - name: first
    assigned_to: coding
    input_data: {say: one}
  - name: second
    assigned_to: coding
    input_data: {say: two}
"""


@pytest.fixture(scope="module", params=["embedded", "valkey", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_on(request.param, tmp_path_factory.mktemp("looking")) as place:
        write_files(place.directory, {"two.yaml": WORKFLOW})
        yield place


@contextlib.contextmanager
def busy(place: Place, name: str) -> Iterator[str]:
    """A task that runs until the block is left; its id."""
    go = place.directory / f"go-{name}"
    said = place.json(
        *["dispatch", "--agent", "loud-1", "--name", name, "--no-wait"],
        *["-i", f"wait_for={go}", "-i", "say=x"],
    )
    task_id = said["task_id"]
    try:
        wait_until_sync(
            lambda: place.json("show", "loud-1")["current_task_id"] == task_id, timeout=30, interval=0.1
        )
        yield task_id
    finally:
        go.touch()
        wait_until_sync(
            lambda: place.json("show", "loud-1")["current_task_id"] is None, timeout=30, interval=0.1
        )


def test_all_is_well(place: Place) -> None:
    status = place.json("status")
    assert (status["healthy"], status["problems"]) == (True, [])
    for server in ("broker", "backend", "state"):
        assert status[server]["reachable"]
        assert status[server]["seconds"] > 0
    assert "guest:guest" not in json.dumps(status)
    [agent] = status["agents"]
    assert (agent["agent_id"], agent["agent_type"], agent["alive"]) == ("loud-1", "coding", True)
    assert 0 <= agent["heartbeat_age_seconds"] < 10
    queues = {queue["name"]: queue for queue in status["queues"]}
    assert queues["conductor.agent.loud-1"]["ready"] == 0
    text = place.run("status")
    assert text.rstrip().endswith("healthy")
    assert "loud-1" in text
    assert "conductor.type.coding" in text


def test_what_waits_with_nobody_to_take_it_is_a_problem(place: Place) -> None:
    place.run("dispatch", "--type", "deploying", "--no-wait")
    status = place.json("status", code=1)
    assert not status["healthy"]
    [problem] = status["problems"]
    assert problem == "1 task waits in conductor.type.deploying, and no agent that is running takes them"
    assert problem in place.run("status", code=1)
    [task] = [row for row in place.json("tasks", "--status", "pending") if row["name"] == "deploying task"]
    assert (task["queue"], task["agent_id"]) == ("conductor.type.deploying", "")
    with background(place.data, "up", "--agents", "deploying", "--json", cwd=place.directory) as more:
        more.wait_for_event(event="ready")
        wait_until_sync(lambda: place.json("status", code=None)["problems"] == [], timeout=30, interval=0.2)


def test_tasks_are_seen_running_waiting_and_ended(place: Place) -> None:
    place.run("dispatch", "--agent", "loud-1", "--name", "mute", code=1)
    with busy(place, "running one") as running:
        waiting = place.json(
            *["dispatch", "--agent", "loud-1", "--name", "waiting one", "--no-wait", "-i", "say=y"]
        )["task_id"]
        rows = place.json("tasks")
        assert [row["task_id"] for row in rows[:2]] == [running, waiting]
        first, second = rows[:2]
        assert (first["name"], first["status"], first["agent_id"]) == ("running one", "in_progress", "loud-1")
        assert (second["name"], second["status"]) == ("waiting one", "pending")
        assert second["queue"] == "conductor.agent.loud-1"
        assert place.json("show", running)["status"] == "in_progress"
        assert place.json("show", waiting)["status"] == "pending"
        assert running in place.run("agents")
        queues = {queue["name"]: queue["ready"] for queue in place.json("status")["queues"]}
        # A node fetches the next task for its own agent while one runs.
        assert queues["conductor.agent.loud-1"] in (0, 1)
    wait_until_sync(lambda: place.json("show", waiting)["status"] == "completed", timeout=30, interval=0.1)
    [mute, *_] = place.json("tasks", "--status", "failed", "--agent", "loud-1")
    assert (mute["name"], mute["error"]) == ("mute", "ValueError: nothing to say")
    assert {row["status"] for row in place.json("tasks", "--status", "completed")} == {"completed"}
    assert len(place.json("tasks", "--limit", "1")) == 1
    assert place.json("tasks", "--limit", "1", "--offset", "1") == place.json("tasks", "--limit", "2")[1:]


def test_a_task_that_celery_revoked_while_it_waited_is_shown_as_skipped(place: Place) -> None:
    with busy(place, "in the way"):
        task_id = place.json("dispatch", "--agent", "loud-1", "--name", "unwanted", "--no-wait")["task_id"]
        control = ["control", "--timeout", "30", "-d", f"loud-1@{socket.gethostname()}", "revoke", task_id]
        subprocess.run(
            [sys.executable, "-m", "celery", "-A", "workers", *control],
            env=environment(place.data),
            cwd=place.directory,
            capture_output=True,
            timeout=60,
            check=True,
        )
    wait_until_sync(
        lambda: place.json("show", task_id)["status"] not in ("pending", "in_progress"), timeout=30
    )
    shown = place.json("show", task_id)
    assert (shown["status"], shown["result"]["error_message"]) == ("skipped", "The task was cancelled.")
    for options in ([], ["--status", "skipped"]):
        [row] = [row for row in place.json("tasks", *options) if row["task_id"] == task_id]
        assert (row["status"], row["agent_id"]) == ("skipped", shown["agent_id"])
    assert task_id not in [row["task_id"] for row in place.json("tasks", "--status", "failed")]


def test_a_failed_task_is_shown_with_its_traceback_and_dead_letter(place: Place) -> None:
    place.run("dispatch", "--agent", "loud-1", "--name", "silence", code=1)
    row = next(row for row in place.json("tasks", "--status", "failed") if row["name"] == "silence")
    shown = place.json("show", row["task_id"])
    assert (shown["kind"], shown["name"], shown["status"]) == ("task", "silence", "failed")
    letter = shown["dead_letter"]
    assert (letter["task_id"], letter["reason"]) == (row["task_id"], "rejected")
    text = place.run("show", row["task_id"][:12])
    assert "ValueError: nothing to say" in text
    assert "Traceback (most recent call last)" in text
    assert letter["letter_id"] in text
    assert place.json("show", letter["letter_id"])["kind"] == "dead_letter"
    status = place.json("status", code=None)
    assert status["dead_letters"] >= 1
    assert any("see 'conductor dlq list'" in warning for warning in status["warnings"])


def test_workflows_are_listed_and_shown(place: Place) -> None:
    run = place.json("run", "two.yaml", "--id", f"run-{time.time_ns()}")
    workflow_id = run["workflow_id"]
    [row] = [row for row in place.json("workflows") if row["workflow_id"] == workflow_id]
    assert (row["name"], row["status"], row["completed_tasks"]) == ("two words", "completed", 2)
    assert workflow_id in place.run("workflows", "--status", "completed")
    assert workflow_id not in place.run("workflows", "--status", "failed")
    shown = place.json("show", workflow_id)
    assert (shown["kind"], len(shown["task_results"])) == ("workflow", 2)
    text = place.run("show", workflow_id)
    assert "first: completed by loud-1" in text
    tasks = place.json("tasks", "--workflow", workflow_id)
    assert {task["name"] for task in tasks} == {"first", "second"}
    assert {task["task_id"] for task in tasks} == set(shown["task_results"])


def test_agents_are_filtered_and_shown(place: Place) -> None:
    assert [row["agent_id"] for row in place.json("agents", "--type", "coding", "--alive")] == ["loud-1"]
    assert place.json("agents", "--type", "monitor") == []
    assert place.json("agents", "--status", "running") == []
    shown = place.json("show", "loud-1")
    assert (shown["kind"], shown["agent_type"], shown["alive"]) == ("agent", "coding", True)
    assert "loud-1@" in place.run("show", "loud-1")


def test_an_id_that_nothing_has_is_an_error(place: Place) -> None:
    text = place.run("show", "00000000-nothing", code=1)
    assert "there is no agent, workflow, task or dead letter '00000000-nothing'" in text


def test_watching_looks_again_until_it_is_ended(place: Place) -> None:
    with background(place.data, "status", "--watch", "0.1", "--json", cwd=place.directory) as watch:
        wait_until_sync(lambda: len(watch.out) >= 3, timeout=30)
        assert watch.end() == 0
    assert all("healthy" in json.loads(line) for line in watch.out)
    place.run("dispatch", "--agent", "loud-1", "-i", "say=x")
    with background(place.data, "tasks", "-w", "0.1", cwd=place.directory) as watch:
        wait_until_sync(lambda: "".join(watch.out).count("task ") >= 2, timeout=30)
        assert watch.end() == 0


def test_without_any_server_status_says_what_to_start(tmp_path: Path) -> None:
    done = conductor(tmp_path / "data", "status", "--json", cwd=tmp_path)
    assert done.returncode == 1
    status = json.loads(done.stdout)
    assert "start one with 'conductor up'" in status["problems"][0]
    done = conductor(tmp_path / "data", "agents", cwd=tmp_path)
    assert done.returncode == 2
    assert "start one with 'conductor up'" in done.stderr


@pytest.mark.parametrize("away", ["broker", "state"])
def test_half_of_the_servers_is_shown_while_the_other_is_away(
    away: str, tmp_path: Path, valkey_url: str
) -> None:
    urls = {"broker": f"{valkey_url.rpartition('/')[0]}/13", "state": f"{valkey_url.rpartition('/')[0]}/13"}
    urls[away] = "redis://:sesame@127.0.0.1:1/0"
    env = environment(tmp_path / "data") | {
        "CONDUCTOR_BROKER_URL": urls["broker"],
        "CONDUCTOR_REDIS__URL": urls["state"],
        "CONDUCTOR_BUS__CONNECT_TIMEOUT": "1",
    }
    done = subprocess.run(
        [COMMAND, "status", "--json"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    status = json.loads(done.stdout)
    other = "state" if away == "broker" else "broker"
    assert (status[away]["reachable"], status[other]["reachable"]) == (False, True)
    assert status["problems"][0].startswith(
        f"the {'broker' if away == 'broker' else 'state store'} at redis://"
    )
    assert "sesame" not in done.stdout + done.stderr
    assert (status["dead_letters"] is None) == (away == "broker")


def test_a_server_that_is_frozen_is_a_problem_and_nothing_else_is_written(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "valkey") as server:
        with redis.Redis.from_url(server.url) as client:
            pid = int(client.info()["process_id"])
        url = f"{server.url.rpartition('/')[0]}/1"
        settings = f"broker_url: {url}\nredis: {{url: {url}}}\nbus: {{connect_timeout: 1}}\n"
        write_files(tmp_path, {"conductor.yaml": settings})
        os.kill(pid, signal.SIGSTOP)
        try:
            done = conductor(tmp_path / "data", "status", "--json", cwd=tmp_path)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert (done.returncode, done.stderr) == (1, "")
    assert len(json.loads(done.stdout)["problems"]) == 2


def test_what_is_known_is_shown_while_the_broker_is_away(tmp_path: Path, valkey_url: str) -> None:
    url, ids = f"{valkey_url.rpartition('/')[0]}/12", [new_id() for _ in range(3)]

    async def fill() -> None:
        async with RedisStateManager(url) as state:
            await state.save_agent_state(AgentState(agent_id=ids[0], agent_type=AgentType.CODING))
            await state.save_workflow_state(WorkflowState(workflow_id=ids[1]))
            await state.save_task_result(
                TaskResult(task_id=ids[2], agent_id=ids[0], status=TaskStatus.COMPLETED)
            )

    asyncio.run(fill())
    settings = f"broker_url: redis://127.0.0.1:1/0\nredis: {{url: {url}}}\nbus: {{connect_timeout: 1}}\n"
    write_files(tmp_path, {"conductor.yaml": settings})
    for command, some_id in (
        *zip((["agents"], ["workflows"], ["tasks"]), ids, strict=True),
        *((["show", some_id], some_id) for some_id in ids),
        *((["show", some_id[:8]], some_id) for some_id in ids),
    ):
        done = conductor(tmp_path / "data", *command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert some_id in done.stdout
    assert conductor(tmp_path / "data", "logs", ids[1], cwd=tmp_path).returncode == 0
    done = conductor(tmp_path / "data", "show", new_id(), cwd=tmp_path)
    assert done.returncode == 1
    assert "The broker cannot be reached to look for a dead letter" in done.stderr


def test_the_phases_and_tasks_of_a_run_are_shown_as_they_went(tmp_path: Path, valkey_url: str) -> None:
    url, workflow_id = f"{valkey_url.rpartition('/')[0]}/12", new_id()
    now = utc_now()
    results = [
        TaskResult(task_id=name, agent_id="a", status=TaskStatus.COMPLETED, started_at=now + timedelta(age))
        for name, age in (("the-last", 3), ("the-first", 1), ("the-second", 2))
    ]
    history = [{"phase": "development", "result": outcome} for outcome in ("failed", "completed")]

    async def fill() -> None:
        async with RedisStateManager(url) as state:
            found = {result.task_id: result for result in results}
            await state.save_workflow_state(
                WorkflowState(
                    workflow_id=workflow_id, task_results=found, phase_history=history, feedback_count=1
                )
            )

    asyncio.run(fill())
    write_files(tmp_path, {"conductor.yaml": f"broker_url: {url}\n"})
    shown = conductor(tmp_path / "data", "show", workflow_id, cwd=tmp_path).stdout
    words = ["1 round\n", "development: failed", "development (feedback 1): completed"]
    words += ["the-first", "the-second", "the-last"]
    places = [shown.find(word) for word in words]
    assert -1 not in places, shown
    assert places == sorted(places)


def give_sign(url: str, agent_id: str) -> None:
    """Have a coding agent be alive, as its heartbeat says."""

    async def save() -> None:
        async with RedisStateManager(url) as state:
            beat = utc_now() + timedelta(minutes=1)  # The machine may be slow.
            await state.save_agent_state(
                AgentState(agent_id=agent_id, agent_type=AgentType.CODING, last_heartbeat=beat)
            )

    asyncio.run(save())


@pytest.mark.parametrize("target", ["--type=coding", "--agent=loud-1"])
def test_a_task_with_a_silent_node_is_a_problem_unless_another_can_take_it(
    target: str, tmp_path: Path
) -> None:
    """The task of a type's queue is for any agent of the type, that of an agent's own queue for it alone."""
    with place_on("valkey", tmp_path, "node:\n  heartbeat_interval: 0.2\n") as place:
        url, go = yaml.safe_load((tmp_path / "conductor.yaml").read_text())["broker_url"], tmp_path / "go"
        sent = place.json("dispatch", target, "--no-wait", "-i", f"wait_for={go}", "-i", "say=x")
        task_id = sent["task_id"]
        wait_until_sync(lambda: place.json("show", "loud-1")["current_task_id"] == task_id, timeout=30)
        assert place.json("status")["problems"] == []
        pid = int(place.json("show", "loud-1")["state"]["metadata"]["pid"])
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until_sync(lambda: not place.json("show", "loud-1")["alive"], timeout=30, interval=0.2)
            stuck = f"task {task_id} is with agent loud-1, which is silent, and no agent that is running"
            stuck += " takes it over"
            assert place.json("status", code=1)["problems"] == [stuck]
            give_sign(url, "calm-1")
            status = place.json("status", code=None)
            assert status["problems"] == ([] if "type" in target else [stuck])
        finally:
            go.touch()
            os.kill(pid, signal.SIGCONT)


def test_a_queue_of_rabbitmq_that_a_living_agent_does_not_consume_is_a_problem(tmp_path: Path) -> None:
    with own_servers("rabbitmq", tmp_path) as addresses:
        settings = f"broker_url: {addresses.broker_url}\nredis: {{url: {addresses.redis_url}}}\n"
        write_files(tmp_path, {"conductor.yaml": settings})
        conductor(tmp_path / "data", "dispatch", "--type", "coding", "--no-wait", cwd=tmp_path)
        give_sign(addresses.redis_url, "deaf")
        done = conductor(tmp_path / "data", "status", "--json", cwd=tmp_path)
    problem = "1 task waits in conductor.type.coding, which no node consumes, though agents live"
    assert (json.loads(done.stdout)["problems"], done.returncode) == ([problem], 1), done.stdout


def test_warnings_are_a_problem_to_who_is_strict(tmp_path: Path, valkey_url: str) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/11"
    settings = f"broker_url: {url}\nredis: {{url: {url}}}\n"
    write_files(tmp_path, {"conductor.yaml": settings})
    for options, healthy in ([], True), (["--strict"], False):
        done = conductor(tmp_path / "data", "status", "--json", *options, cwd=tmp_path)
        status = json.loads(done.stdout)
        assert (status["problems"], status["warnings"]) == ([], ["no agent is running"])
        assert (status["healthy"], done.returncode == 0) == (healthy, healthy)


def test_a_node_that_died_is_seen_by_its_heartbeat(tmp_path: Path) -> None:
    write_files(tmp_path, {"loud.py": AGENTS, "conductor.yaml": "node:\n  heartbeat_interval: 0.2\n"})
    data = tmp_path / "data"
    with background(data, "up", "--agents", "loud:loud", "--json", cwd=tmp_path) as up:
        up.wait_for_event(event="ready")
        shown = json.loads(conductor(data, "show", "loud-1", "--json", cwd=tmp_path).stdout)
        pid = int(shown["state"]["metadata"]["pid"])
        os.kill(pid, signal.SIGSTOP)
        try:

            def warnings() -> list[str]:
                done = conductor(data, "status", "--json", cwd=tmp_path)
                found: list[str] = json.loads(done.stdout)["warnings"]
                return [text for text in found if "without heartbeats" in text]

            [warning] = wait_until_sync(warnings, timeout=30, interval=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert warning.startswith("agent loud-1 is idle without heartbeats: the last one ")
