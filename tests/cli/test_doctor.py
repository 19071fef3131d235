"""`conductor doctor` on servers that are configured well, and badly in each of the ways it looks for."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from conductor.broker.addresses import Addresses
from conductor.broker.topology import type_queue
from conductor.broker.transport import kombu_connection
from conductor.core.enums import AgentType
from conductor.core.fields import utc_now
from conductor.core.state import AgentState
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager
from tests.support import rabbitmq
from tests.support.cli import COMMAND, conductor
from tests.support.nodes import Farm
from tests.support.waiting import wait_until_sync

NOWHERE = "redis://:hidden-word@127.0.0.1:1/0"


def doctor(
    tmp_path: Path, *options: str, shim: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run it with settings in the environment; `shim` is Python that changes what the machine is like."""
    command = [str(COMMAND)]
    if shim:
        command = [sys.executable, "-c", f"{shim}\nfrom conductor.cli import main\nmain()"]
    arguments = [*options, "doctor", "--json"]
    done = conductor(tmp_path / "data", *arguments, cwd=tmp_path, settings=settings, command=command)
    assert "Traceback" not in done.stdout + done.stderr
    assert "hidden-word" not in done.stdout + done.stderr
    return done


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    document = json.loads(done.stdout)
    found = {finding["check"]: finding for finding in document["findings"]}
    bad = any(finding["level"] == "problem" for finding in found.values())
    assert done.returncode == (1 if bad else 0)
    for finding in found.values():
        assert finding["meaning"].endswith(".")
        assert (finding["level"] == "ok") == (finding["advice"] == "")
    return found


@contextmanager
def server(directory: Path, **settings: str) -> Iterator[tuple[str, Any]]:
    """A Valkey with settings of its own, and a client of it."""
    with EmbeddedServer(directory, settings={n.replace("_", "-"): v for n, v in settings.items()}) as valkey:
        client = redis.Redis.from_url(valkey.url, decode_responses=True)
        yield valkey.url, client
        client.close()


def allow(client: Any, rules: str) -> None:
    """Make the user `app`, or change what it may."""
    client.execute_command("ACL SETUSER", "app", *rules.split())


def save_agent(url: str, **fields: Any) -> None:
    async def save() -> None:
        async with RedisStateManager(url) as state:
            await state.save_agent_state(AgentState(agent_type=AgentType.CODING, **fields))

    asyncio.run(save())


def test_a_good_server_has_no_problem(tmp_path: Path) -> None:
    with server(tmp_path / "data") as (url, _):
        save_agent(url, agent_id="coding-1", last_heartbeat=utc_now())
        found = findings(doctor(tmp_path, CONDUCTOR_NODE__HEARTBEAT_INTERVAL="60"))
        assert {finding["level"] for finding in found.values()} == {"ok"}
        assert found["broker"]["meaning"] == f"{url} answers."
        assert found["nodes"]["meaning"] == "Agents that live: coding-1."
        command = conductor(tmp_path / "data", "doctor", cwd=tmp_path)
        text = command.stdout
        assert "Redis persistence   It has an append-only file" in text
        assert text.splitlines()[-1].endswith(" 0 problem, 0 cannot check")


@pytest.mark.parametrize(
    "levels", [({}, "warning", "snapshots only"), ({"save": ""}, "problem", "nothing on disk")]
)
def test_what_is_not_kept_on_disk(tmp_path: Path, levels: tuple[dict[str, str], str, str]) -> None:
    settings, level, words = levels
    with server(tmp_path / "data", appendonly="no") as (_, client):
        client.config_set("save", settings.get("save", "900 1"))
        found = findings(doctor(tmp_path))["Redis persistence"]
        assert found["level"] == level
        assert words in found["meaning"]


def test_a_write_to_disk_that_failed(tmp_path: Path) -> None:
    with server(tmp_path / "data", dbfilename="taken.rdb") as (_, client):
        (tmp_path / "data" / "taken.rdb").mkdir()
        client.bgsave()
        wait_until_sync(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", timeout=30)
        found = findings(doctor(tmp_path))["Redis persistence"]
        assert found["level"] == "problem"
        assert "rdb_last_bgsave_status is err" in found["meaning"]


@pytest.mark.parametrize(
    ("settings", "level", "words"),
    [
        (
            {"maxmemory": "100mb", "maxmemory_policy": "allkeys-lru"},
            "problem",
            "throws keys away (allkeys-lru)",
        ),
        ({"maxmemory_policy": "volatile-ttl"}, "warning", "would throw keys away (volatile-ttl)"),
    ],
)
def test_keys_that_are_thrown_away(tmp_path: Path, settings: dict[str, str], level: str, words: str) -> None:
    with server(tmp_path / "data", **settings):
        found = findings(doctor(tmp_path))["Redis eviction"]
        assert (found["level"], words in found["meaning"]) == (level, True)
        assert "noeviction" in found["advice"]


def test_a_memory_that_is_nearly_full(tmp_path: Path) -> None:
    with server(tmp_path / "data") as (_, client):
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.02) + 100_000)
        found = findings(doctor(tmp_path))["Redis eviction"]
        assert found["level"] == "warning"
        assert "% of its maxmemory" in found["meaning"]


def test_a_managed_redis_that_forbids_config_and_tracking(tmp_path: Path) -> None:
    with server(tmp_path / "valkey", appendonly="no", save="") as (url, client):
        allow(client, "on >hidden-word ~* &* +@all -config -client|tracking")
        address = url.replace("redis://", "redis://app:hidden-word@")
        found = findings(doctor(tmp_path, CONDUCTOR_BROKER_URL=address))
        assert found["Redis persistence"]["level"] == "cannot check"
        assert found["Redis tracking"]["level"] == "warning"
        assert "looks for tasks only every 3 s" in found["Redis tracking"]["meaning"]
        allow(client, "-info -time")
        done = doctor(tmp_path, CONDUCTOR_BROKER_URL=address)
        found = findings(done)
        assert {found[f"Redis {what}"]["level"] for what in ("version", "eviction", "clock")} == {
            "cannot check"
        }
        assert done.returncode == 0


@pytest.mark.parametrize(("behind", "level"), [(1, "ok"), (5, "warning"), (40, "problem")])
def test_a_clock_that_is_wrong(tmp_path: Path, behind: int, level: str) -> None:
    shim = f"import time; clock = time.time; time.time = lambda: clock() - {behind}"
    with server(tmp_path / "data"):
        found = findings(doctor(tmp_path, shim=shim))["Redis clock"]
        assert found["level"] == level
        assert f"{behind}.0 s ahead of this machine's" in found["meaning"]


def test_heartbeats_from_the_future_and_of_the_dead(tmp_path: Path) -> None:
    with server(tmp_path / "data") as (url, _):
        save_agent(url, agent_id="early", last_heartbeat=utc_now() + timedelta(minutes=5))
        save_agent(url, agent_id="late", status="running", last_heartbeat=utc_now() - timedelta(hours=1))
        found = findings(doctor(tmp_path))
        assert found["clock of early"]["level"] == "problem"
        assert "started again" in found["clock of early"]["meaning"]
        assert found["lost nodes"]["level"] == "warning"
        assert found["lost nodes"]["meaning"].startswith("late worked on a task and sent no heartbeat for 36")
        assert "a task of its own queue waits for it" in found["lost nodes"]["advice"]


def test_no_node_at_all(tmp_path: Path) -> None:
    with server(tmp_path / "data"):
        found = findings(doctor(tmp_path))["nodes"]
        assert (found["level"], found["meaning"]) == ("warning", "No agent lives: what is dispatched waits.")


def test_tasks_that_are_held_by_nobody(tmp_path: Path) -> None:
    with server(tmp_path / "data") as (_, client):
        client.zadd("conductor.unacked_index", {"tag": time.time(), "other": time.time()})
        assert findings(doctor(tmp_path))["visibility timeout"]["level"] == "ok"
        client.zadd("conductor.unacked_index", {"tag": time.time() - 600})
        found = findings(doctor(tmp_path))["visibility timeout"]
        assert found["level"] == "problem"
        assert found["meaning"].startswith("Tasks are held by nobody")


def test_nodes_that_differ(tmp_path: Path, valkey_url: str) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/11"
    other = tmp_path / "packages" / "kombu-4.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: kombu\nVersion: 4.1.0\n")
    farm = Farm(Addresses(url, url), tmp_path)
    settings = {"CONDUCTOR_BROKER_URL": url}
    try:
        farm.setup(
            farm.start("ObedientAgent", "hasty"),
            farm.start(
                "ObedientAgent",
                "lazy",
                PYTHONPATH=f"{other.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                CONDUCTOR_WORK__VISIBILITY_TIMEOUT="60",
                CONDUCTOR_WORK__TOUCH_INTERVAL="20",
            ),
        )
        found = findings(doctor(tmp_path, **settings))
        assert found["versions of lazy@test"]["meaning"].startswith(
            "Node lazy@test runs kombu 4.1.0 (here 5."
        )
        assert "versions of hasty@test" not in found
        assert found["settings of nodes"]["level"] == "problem"
        assert "hasty@test takes over what nobody touched for 15 s" in found["settings of nodes"]["meaning"]
        farm.nodes.pop(0).teardown()
        found = findings(doctor(tmp_path, **settings))
        assert found["settings of nodes"]["level"] == "warning"
        shim = "import time; clock = time.time; time.time = lambda: clock() - 9"
        found = findings(doctor(tmp_path, shim=shim, **settings))
        assert found["clock of lazy@test"]["level"] == "warning"
    finally:
        farm.teardown()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_servers_that_are_not_there(tmp_path: Path, scheme: str) -> None:
    address = NOWHERE.replace("redis", scheme, 1)
    done = doctor(tmp_path, CONDUCTOR_BROKER_URL=address, CONDUCTOR_REDIS__URL=f"{NOWHERE}1")
    found = findings(done)
    assert done.returncode == 1
    assert found["broker"]["level"] == found["state store"]["level"] == "problem"
    assert ":***@127.0.0.1:1" in found["broker"]["meaning"]
    assert "CONDUCTOR_REDIS__URL" in found["state store"]["advice"]


def test_a_virtual_host_that_there_is_not(tmp_path: Path, rabbitmq_url: str, valkey_url: str) -> None:
    address = f"{rabbitmq_url.rpartition('/')[0]}/nowhere"
    found = findings(doctor(tmp_path, CONDUCTOR_BROKER_URL=address, CONDUCTOR_REDIS__URL=valkey_url))[
        "broker"
    ]
    assert found["level"] == "problem"
    assert "rabbitmqctl add_vhost nowhere" in found["advice"]
    assert "CONDUCTOR_BROKER_URL" in found["advice"]


def test_no_server_configured(tmp_path: Path) -> None:
    found = findings(doctor(tmp_path))["servers"]
    assert found["level"] == "problem"
    assert "conductor up" in found["advice"]


@pytest.mark.parametrize("in_file", ["", "work: {touch_interval: 3}\n"])
def test_settings_that_do_not_fit_each_other_name_all_that_set_them(tmp_path: Path, in_file: str) -> None:
    (tmp_path / "conductor.yaml").write_text(f"broker_url: {NOWHERE}\n{in_file}")
    found = findings(doctor(tmp_path, CONDUCTOR_WORK__VISIBILITY_TIMEOUT="2"))["settings"]
    assert found["level"] == "problem"
    assert "environment variable CONDUCTOR_WORK__VISIBILITY_TIMEOUT" in found["meaning"]
    assert ("conductor.yaml" in found["meaning"]) == bool(in_file)


@pytest.mark.parametrize("where", ["variable", "file", "missing"])
def test_settings_that_are_wrong(tmp_path: Path, where: str) -> None:
    if where == "missing":
        done = doctor(tmp_path, "--config", "nowhere.yaml")
        assert "nowhere.yaml" in findings(done)["settings"]["meaning"]
        return
    if where == "variable":
        done = doctor(tmp_path, CONDUCTOR_WORK__TOUCH_INTERVAL="soon")
    else:
        (tmp_path / "conductor.yaml").write_text("work: {touch_interval: soon}\n")
        done = doctor(tmp_path)
    found = findings(done)["settings"]
    assert (done.returncode, found["level"]) == (1, "problem")
    assert "touch_interval" in found["meaning"].lower()
    source = "CONDUCTOR_WORK__TOUCH_INTERVAL" if where == "variable" else "conductor.yaml"
    assert source in found["meaning"]


def test_versions_that_do_not_fit(tmp_path: Path) -> None:
    other = tmp_path / "packages" / "kombu-4.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: kombu\nVersion: 4.1.0\n")
    shim = f"import sys; sys.path.insert(0, {str(other.parent)!r})"
    found = findings(doctor(tmp_path, shim=shim))["versions"]
    assert found["level"] == "problem"
    assert "kombu 4.1.0 (it needs <5.8,>=5.7)" in found["meaning"]
    shim = "import platform; platform.python_version = lambda: '3.9.1'"
    assert "Python 3.9.1 (it needs >=3.11)" in findings(doctor(tmp_path, shim=shim))["versions"]["meaning"]


def test_a_data_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = findings(doctor(tmp_path, CONDUCTOR_DATA_DIR=str(tmp_path / "file" / "data")))["data_dir"]
    assert found["level"] == "problem"
    assert "Not a directory" in found["meaning"]


@pytest.mark.parametrize(("free", "level"), [(10**12, "ok"), (500 * 2**20, "warning"), (2**20, "problem")])
def test_a_disk_that_is_full(tmp_path: Path, free: int, level: str) -> None:
    shim = f"import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free={free})"
    assert findings(doctor(tmp_path, shim=shim))["disk space"]["level"] == level


ALL = "^(conductor\\..*|.*\\.conductor\\.pidbox\\.pidbox)$"


@pytest.mark.parametrize(
    ("used", "rights", "missing"),
    [
        (True, (ALL, "^(conductor\\..*|amq\\.default)$", ALL), []),
        (True, ("^conductor\\..*", ".*", ".*"), ["configure on queue", ".conductor.pidbox.pidbox'"]),
        (
            False,
            ("^$", ".*", ".*"),
            ["configure on queue 'conductor.agent.", "configure on exchange 'conductor."],
        ),
        (True, (".*", "^conductor\\..*", ".*"), ["write on exchange 'amq.default'"]),
        (True, (".*", "^(conductor\\.agent.*|amq\\.default)$", ".*"), ["write on exchange 'conductor."]),
        (False, (".*", "^(amq\\.default)$", ".*"), ["write on queue 'conductor.agent."]),
        (False, (".*", ".*", "^conductor\\.(doctor|events).*"), ["read on queue 'conductor.agent."]),
        (True, (".*", ".*", "^conductor\\.agent.*"), ["read on exchange 'conductor."]),
    ],
)
def test_rights_that_lack_on_rabbitmq(
    tmp_path: Path,
    rabbitmq_url: str,
    valkey_url: str,
    rights: tuple[str, ...],
    missing: list[str],
    used: bool,
) -> None:
    if os.environ.get(rabbitmq.URL):
        pytest.skip(f"{rabbitmq.URL} names a virtual host in which no users can be made")
    user = f"doctor-{uuid.uuid4().hex[:8]}"
    with rabbitmq.virtual_host() as url, rabbitmq.user(user, "hidden-word", url, *rights):
        if used:
            rabbitmq.declare_topic_exchange(url, "conductor.events")
        before = [rabbitmq.list_objects(kind, url, "name") for kind in ("queues", "exchanges")]
        address = url.replace("guest:guest", f"{user}:hidden-word")
        done = doctor(tmp_path, CONDUCTOR_BROKER_URL=address, CONDUCTOR_REDIS__URL=valkey_url)
        found = findings(done)["RabbitMQ permissions"]
        assert found["level"] == ("problem" if missing else "ok"), found
        for words in missing:
            assert words in found["meaning"]
        assert [rabbitmq.list_objects(kind, url, "name") for kind in ("queues", "exchanges")] == before


def test_what_rabbitmq_must_wait_for(tmp_path: Path, rabbitmq_url: str, valkey_url: str) -> None:
    servers = {"CONDUCTOR_BROKER_URL": rabbitmq_url, "CONDUCTOR_REDIS__URL": valkey_url}
    found = findings(doctor(tmp_path, **servers))
    assert found["consumer timeout"]["level"] == "cannot check"
    assert found["RabbitMQ version"]["level"] == "ok"
    found = findings(doctor(tmp_path, CONDUCTOR_WORK__VISIBILITY_TIMEOUT="70", **servers))
    assert found["consumer timeout"]["level"] == "warning"
    found = findings(doctor(tmp_path, CONDUCTOR_WORK__VISIBILITY_TIMEOUT="1800", **servers))
    assert found["consumer timeout"]["level"] == "problem"


def test_queues_that_are_of_another_type_than_the_url_says(tmp_path: Path, valkey_url: str) -> None:
    rabbitmq.skip_without_ctl()
    with rabbitmq.virtual_host(task_queues="quorum") as url:
        servers = {"CONDUCTOR_BROKER_URL": url, "CONDUCTOR_REDIS__URL": valkey_url}
        assert findings(doctor(tmp_path, **servers))["queue types"]["level"] == "ok"
        assert rabbitmq.list_objects("queues", url, "name") == []
        with kombu_connection(url.partition("?")[0]) as connection:
            type_queue(AgentType.CODING)(connection.default_channel).declare()
        found = findings(doctor(tmp_path, **servers))["queue types"]
        assert found["level"] == "problem"
        assert "queue conductor.type.coding is of type classic" in found["meaning"]
        assert "rabbitmqctl delete_queue" in found["advice"]


@pytest.mark.parametrize("command", ["doctor", "up", "status"])
def test_a_type_of_queues_that_there_is_not(tmp_path: Path, valkey_url: str, command: str) -> None:
    settings = {
        "CONDUCTOR_BROKER_URL": "amqp://127.0.0.1:1//?task_queues=mirrored",
        "CONDUCTOR_REDIS__URL": valkey_url,
    }
    done = conductor(tmp_path / "data", command, cwd=tmp_path, settings=settings)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert "is none of classic, quorum" in done.stdout + done.stderr
