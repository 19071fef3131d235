"""No password is shown anywhere: all that is written, kept or shown is searched for markers."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import typer
from typer.testing import CliRunner

from conductor import Conductor, ConductorError, create_message_bus, create_state_manager
from conductor.broker.addresses import Addresses
from conductor.broker.app import create_app
from conductor.cli.commands import app
from conductor.core.channels import agent_channel
from conductor.core.config import ConductorConfig, TracingConfig, load_config
from conductor.core.models import TaskDefinition
from tests.support import rabbitmq, shown
from tests.support.cli import COMMAND, Background, background, environment
from tests.support.leaking import AGENTS, Guarded, guarded
from tests.support.markers import Marker
from tests.support.ports import free_port
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

USER = "looker"


class Scene:
    """Servers, nodes and a Flower, what all of it has shown, and the words to look for in that."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory, self.data = kind, directory, directory / "data"
        self.redis, self.broker, self.flower, self.signing = (Marker() for _ in range(4))
        self.planted = Marker()
        """Stands wherever passwords might, is none, and so has to be found."""
        self.shown: dict[str, str] = {}
        self.metrics: list[str] = []

    @property
    def broker_of_this(self) -> Marker:
        """The password of the broker, which may be that of the Redis."""
        return self.broker if self.kind == "rabbitmq" else self.redis

    @property
    def secrets(self) -> list[Marker]:
        return [self.redis, self.broker, self.flower, self.signing]

    def write(self, guarded: Guarded) -> None:
        """Write agents, a workflow, and a configuration for each form of logs."""
        settings = {
            "broker_url": guarded.addresses.broker_url,
            "redis": {"url": guarded.addresses.redis_url},
            "log_level": "DEBUG",
            "bus": {"connect_timeout": 2},
            "errors": {"retry": {"max_retries": 1, "initial_delay": 0.05}},
            "tracing": {"exporter": "console"},
            "signing": {"keys": {"first": self.signing.text}, "key_id": "first"},
        }
        tasks = [
            {"name": do, "assigned_to": "coding", "input_data": {"do": do, "say": self.planted.text}}
            for do in ("work", "fail")
        ]
        files = {
            "careless.py": AGENTS,
            "two.yaml": json.dumps({"name": self.planted.text, "tasks": tasks}),
            "conductor.yaml": json.dumps(settings),
            "text.yaml": json.dumps(settings | {"log_format": "console"}),
        }
        write_files(self.directory, files)  # JSON is YAML

    def run(self, *arguments: str, **changed: str) -> str:
        """Run a command to its end, and note what it wrote."""
        celery = [sys.executable, "-m", "celery", "-A", "workers"]
        command = [*celery, *arguments[1:]] if arguments[0] == "celery" else [str(COMMAND), *arguments]
        done = subprocess.run(
            command,
            env=environment(self.data) | changed,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        name = " ".join([*arguments, *changed.values()])
        self.shown[name] = done.stdout + done.stderr
        return done.stdout

    def run_here(self, *arguments: str) -> None:
        """Run one in this process, which is quicker."""
        changed = environment(self.data) | {"CONDUCTOR_TRACING__EXPORTER": "none"}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.directory)
            done = CliRunner().invoke(app, arguments, env=changed)
        assert done.exception is None or isinstance(done.exception, SystemExit), arguments
        self.shown[" ".join(arguments)] = done.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


def do_work(scene: Scene) -> dict[str, str]:
    """Do what succeeds, fails and dies, and give the ids of it."""
    ids: dict[str, str] = {}
    for agent, do in (("careless-1", "work"), ("careless-1", "fail"), ("careless-2", "retry")):
        words = ["--agent", agent, "--name", scene.planted.text, "-i", f"say={scene.planted.text}"]
        ids[do] = scene.json("dispatch", *words, "-i", f"do={do}")["task_id"]
    scene.run("dispatch", "--agent", "careless-2", "-i", "do=fail", "-i", f"say={scene.planted.text}")
    ids["run"] = scene.json("run", "two.yaml")["workflow_id"]
    ids["letter"] = scene.json("dlq", "list")["letters"][0]["letter_id"]
    return ids


def looking(scene: Scene, ids: dict[str, str]) -> list[list[str]]:
    """Every command, as it is used where all is well."""
    payload = json.dumps({"say": scene.planted.text})
    asked = json.dumps({"task": {"name": "asked", "input_data": {"do": "fail", "say": scene.planted.text}}})
    both = [
        *(["status"], ["agents"], ["workflows"], ["tasks"], ["doctor"], ["dlq", "list"]),
        *(["show", ids[name]] for name in ids),
        *(["show", "careless-1"], ["dlq", "show", ids["letter"]], ["logs", ids["run"]]),
        *(["top", "--once", "--interval", "0.3"], ["resume", ids["run"]], ["cancel", ids["run"]]),
        *(["listen", "conductor:*", "--timeout", "0.5"], ["publish", "x", "--payload", payload]),
        *(["request", agent_channel("careless-1"), "--payload", asked], ["show", "nothing-there"]),
        *(["dlq", "replay", ids["letter"]], ["dlq", "purge", "nothing-there"]),
    ]
    helps = [[*words, "--help"] for words in (*command_names(typer.main.get_command(app)), ())]
    return [*both, *([*words, "--json"] for words in both), *helps]


def failing(scene: Scene, addresses: Addresses) -> list[tuple[list[str], dict[str, str]]]:
    """Commands with servers that are away, refuse, or are not named rightly."""
    scheme, host = addresses.broker_url.partition(":")[0], addresses.broker_url.rpartition("@")[2]
    store = addresses.redis_url.rpartition("@")[2]
    raw = f"wrong {scene.broker_of_this.text}"
    wrong, also_wrong = quote(raw, safe=""), quote(f"wrong {scene.redis.text}", safe="")
    away = [
        {"CONDUCTOR_BROKER_URL": f"{scheme}://someone:{wrong}@{host}"},
        {"CONDUCTOR_BROKER_URL": f"{scheme}://someone:{wrong}@127.0.0.1:1/0"},
        {"CONDUCTOR_REDIS__URL": f"redis://:{also_wrong}@{store}"},
        {"CONDUCTOR_REDIS__URL": f"redis://:{also_wrong}@127.0.0.1:1/0"},
    ]
    refused = [
        {"CONDUCTOR_BROKER_URL": f"{scheme}://someone:{raw}@{host}"},  # not percent-encoded
        {"CONDUCTOR_BROKER_URL": f"gopher://someone:{wrong}@{host}"},
        {"CONDUCTOR_BROKER_URL": f"someone:{raw}@{host}"},
        {"CONDUCTOR_REDIS": f'{{"url": "redis://:{also_wrong}@h/0"'},
        {"CONDUCTOR_REDIS__URL": f"redis://:{also_wrong}@h:port/0"},
        {"CONDUCTOR_SIGNING": json.dumps({"keys": {"a": scene.signing.text}, "key_id": "b"})},
        {"CONDUCTOR_SIGNING": json.dumps({"keys": {scene.signing.text: "a"}, "key_id": "a"})},
        {"CONDUCTOR_SIGNING": json.dumps({"keys": scene.signing.text, "key_id": "a"})},
        {"CONDUCTOR_SIGNING": json.dumps(scene.signing.text)},
    ]
    up = ["up", "--agents", "careless:careless"]
    found = [(["-v", *words], change) for words in (["status"], ["doctor"], up) for change in away]
    found += [(["-v", *words], change) for words in (["status"], ["doctor"]) for change in refused]
    more = (["tasks"], ["dlq", "list"], ["dispatch", "-t", "coding"], ["flower"], ["listen", "x"])
    found += [(["-v", *words], away[0]) for words in more]
    return [*found, *((["celery", "inspect", "ping"], change) for change in away[:2])]


def command_names(group: Any, *before: str) -> Iterator[tuple[str, ...]]:
    """The words of all commands there are."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from command_names(command, *before, name)
        else:
            yield (*before, name)


@contextlib.contextmanager
def flower(scene: Scene) -> Iterator[tuple[int, Background]]:
    """A Flower behind a password, once it has heard of the nodes."""
    port, login = free_port(), f"{USER}:{scene.flower.text}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWER_BASIC_AUTH", login)
        command = background(scene.data, "flower", "--port", str(port), cwd=scene.directory)
        with command as running:

            def hears() -> bool:
                assert running.process.poll() is None, running
                with contextlib.suppress(OSError):
                    return "careless-2@" in shown.page(port, login, "/api/workers?refresh=true")
                return False

            wait_until_sync(hears, timeout=90, interval=0.5)
            yield port, running


async def by_program(scene: Scene, config: ConductorConfig) -> str:
    """What a program of somebody's sees: objects, answers and errors, with their tracebacks."""
    lines: list[str] = []

    def note(*things: object) -> None:
        for thing in things:
            lines.extend([repr(thing), str(thing)])

    async with Conductor(config) as conductor:
        celery = create_app(config, addresses=conductor.addresses, set_as_current=False)
        note(conductor, config, config.redis, config.signing, conductor.addresses, conductor.bus)
        note(conductor.state, conductor.dead_letters, celery, celery.backend, celery.connection())
        task = TaskDefinition(name="x", input_data={"do": "fail", "say": scene.planted.text})
        note(await (await conductor.dispatch(task, "careless-1")).result(60))
    for url in (config.broker_url, config.redis.url):
        assert url is not None
        user, host = url.partition("//")[2].partition(":")[0], url.rpartition("@")[2]
        right = scene.broker_of_this if url == config.broker_url else scene.redis
        changed = quote(f"wrong {right.text}", safe="")
        for place in (host, "127.0.0.1:1/0", "127.0.0.1:bad/0"):
            wrong = f"{url.partition(':')[0]}://{user}:{changed}@{place}"
            lines += await error_of(create_message_bus, wrong)
            if not url.startswith("amqp"):
                lines += await error_of(create_state_manager, wrong)
    return "\n".join(lines)


async def error_of(make: Any, url: str) -> list[str]:
    """All that an error of connecting says."""
    try:
        async with make(url) as made:
            raise AssertionError(repr(made))
    except ConductorError as error:
        trace = "".join(traceback.format_exception(error))
        return [repr(error), str(error), repr(error.to_dict()), repr(error.args), trace]


def see_all(scene: Scene, servers: Guarded) -> None:
    """Let everything happen, and note all that is shown."""
    scene.write(servers)
    start = ["up", "--agents", "careless:careless", "--metrics-port", "0", "--json"]
    with contextlib.ExitStack() as stack:
        ups = []
        for before in ([], ["-c", "text.yaml", "-v"]):
            up = stack.enter_context(background(scene.data, *before, *start, cwd=scene.directory))
            scene.metrics.append(up.wait_for_event(event="ready")["metrics_url"])
            ups.append(up)
        port, web = stack.enter_context(flower(scene))
        ids = do_work(scene)
        with background(scene.data, "listen", f"planted:{scene.planted.core}", cwd=scene.directory):
            scene.shown["command lines"] = shown.in_command_lines()
        tasks, login = [ids["work"], ids["fail"], ids["retry"]], f"{USER}:{scene.flower.text}"
        worker = f"careless-1@{socket.gethostname()}"
        scene.shown["flower"] = shown.in_flower(port, login, tasks, worker)
        scene.shown["metrics"] = "".join(map(read, scene.metrics))
        for words in looking(scene, ids):
            scene.run_here(*words)
        asked = [["report"], ["status"], *(["inspect", what] for what in ("stats", "conf", "active_queues"))]
        runs = [(["celery", *words], dict[str, str]()) for words in asked]
        with ThreadPoolExecutor(3) as pool:
            runs += failing(scene, servers.addresses)
            list(pool.map(lambda each: scene.run(*each[0], **each[1]), runs))
        config = load_config(scene.directory / "conductor.yaml")
        config = config.model_copy(update={"tracing": TracingConfig()})
        scene.shown["program"] = asyncio.run(by_program(scene, config))
        scene.shown["redis"] = shown.in_redis(servers.addresses.redis_url)
        if scene.kind == "rabbitmq":
            scene.shown["queues"] = shown.in_queues(servers.addresses.broker_url)
        for end in (servers.refuse, servers.stop):
            before = [len(up.err) for up in ups]
            end()
            wait_until_sync(lambda before=before: len(ups[1].err) > before[1] + 20, timeout=60)
        for name, command in (("up", ups[0]), ("up -v", ups[1]), ("web", web)):
            command.end(signal.SIGKILL if command is web else signal.SIGINT)
            scene.shown[f"{name} out"], scene.shown[f"{name} err"] = map("".join, (command.out, command.err))
    scene.shown["files"] = shown.in_files(scene.data)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module", params=["valkey", "rabbitmq"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    if request.param == "rabbitmq":
        rabbitmq.skip_without()
        if os.environ.get(rabbitmq.URL):
            pytest.skip(f"{rabbitmq.URL} names a virtual host in which no users can be made")
    scene = Scene(request.param, tmp_path_factory.mktemp("seen"))
    store = tmp_path_factory.mktemp("valkey")
    with guarded(request.param, store, scene.redis, scene.broker) as servers:
        see_all(scene, servers)
    return scene


def test_no_password_is_in_anything_that_is_shown(scene: Scene) -> None:
    found = {
        where: text
        for where, all_of_it in scene.shown.items()
        for secret in scene.secrets
        if (text := secret.found_in(all_of_it))
    }
    assert not found, "\n\n".join(f"{where}: {text}" for where, text in found.items())


#: Where what looks like a password and is none has to be found, for the search to be worth anything.
FINDS = [
    *("tasks", "tasks --json", "workflows", "workflows --json", "dlq list --json"),
    *("command lines", "flower", "program", "redis", "files", "up -v err"),
]


def test_what_is_no_password_is_found_in_all_those_places(scene: Scene) -> None:
    places = FINDS + (["queues"] if scene.kind == "rabbitmq" else [])
    assert [where for where in places if not scene.planted.found_in(scene.shown[where])] == []
    for kind in ("show", "dlq show", "logs", "request", "run"):
        texts = [text for name, text in scene.shown.items() if name.startswith(kind)]
        assert any(map(scene.planted.found_in, texts)), kind


def test_every_command_was_looked_at(scene: Scene) -> None:
    for words in command_names(typer.main.get_command(app)):
        name = " ".join(words)
        looked_at = [text for each, text in scene.shown.items() if each.startswith((name, f"-v {name}"))]
        assert len(looked_at) > (words != ("metrics",)), name
        assert all(looked_at), name


@pytest.mark.parametrize("form", ["raw", "quoted", "repr", "json", "base64", "part", "bytes"])
def test_a_marker_is_found_however_it_is_written(form: str) -> None:
    marker, other = Marker(), Marker()
    written = {
        "raw": marker.text,
        "quoted": quote(marker.text, safe=""),
        "repr": repr([marker.text]),
        "json": json.dumps({"a": json.dumps(marker.text)}),
        "base64": json.dumps({"body": b64encode(json.dumps([marker.text]).encode()).decode()}),
        "part": marker.text[len(marker.text) // 2 :],
        "bytes": repr(marker.text.encode()),
    }[form]
    text = f"some words redis://:{written}@host and more"
    assert marker.found_in(text)
    assert not other.found_in(text)
