"""Flower for real, by its API and its pages, and Celery's own tools beside it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.cli import COMMAND, background, conductor, environment
from tests.support.places import Place, place_on
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

CELERY = [sys.executable, "-m", "celery", "-A", "workers"]
REQUIRED = "CONDUCTOR_TEST_REQUIRE_CHROMIUM"
#: Set to a directory to have screenshots of the pages put there.
PICTURES = "CONDUCTOR_TEST_FLOWER_PICTURES"
CHROMIUM = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1280,720", "--disable-dev-shm-usage"),
]


class Flower:
    """A `conductor flower` that runs, and the words of its API."""

    def __init__(self, port: int, place: Place) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.place = place

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as response:
            return json.load(response)

    def task(self, name: str, state: str) -> dict[str, Any]:
        """The newest task of a name, once it is in a state."""

        def find() -> dict[str, Any] | None:
            found = [one for one in self.get("/api/tasks").values() if one["name"] == name]
            return next((one for one in found if one["state"] == state), None)

        task = wait_until_sync(find, timeout=60, interval=0.2)
        assert task is not None
        return task


@pytest.fixture(scope="module", params=["embedded", "valkey", "rabbitmq"])
def flower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    directory, port = tmp_path_factory.mktemp("flower"), free_port()
    # One of the places is watched with Celery's command.
    program = CELERY if request.param == "valkey" else [COMMAND]
    with (
        pytest.MonkeyPatch.context() as patch,
        place_on(request.param, directory) as place,
    ):
        patch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
        options = ["flower", f"--port={port}", "--persistent=False"]
        with background(place.data, *options, cwd=directory, command=program) as command:
            flower = Flower(port, place)

            def hears() -> bool:
                assert command.process.poll() is None, command
                with contextlib.suppress(OSError):
                    return "loud-1" in str(list(flower.get("/api/workers?refresh=true")))
                return False

            wait_until_sync(hears, timeout=90, interval=0.3)
            yield flower
            assert command.end() == 0, command


def test_nodes_have_the_ids_of_their_agents_and_no_passwords(flower: Flower) -> None:
    workers = flower.get("/api/workers?refresh=true")
    [name] = [name for name in workers if name.startswith("loud-1@")]
    assert {queue["name"] for queue in workers[name]["active_queues"]} == {
        "conductor.agent.loud-1",
        "conductor.type.coding",
    }
    assert "guest:guest" not in json.dumps(workers)


def test_tasks_have_readable_names_arguments_and_results(flower: Flower) -> None:
    flower.place.run("dispatch", "--agent", "loud-1", "--name", "say hello", "-i", "say=hello")
    task = flower.task("say hello", "SUCCESS")
    assert task["kwargs"] == "{'say': 'hello'}"
    assert task["worker"].startswith("loud-1@")
    assert "'output_data': {'said': 'HELLO'}" in task["result"]
    info = flower.get(f"/api/task/info/{task['uuid']}")
    assert (info["name"], info["state"]) == ("say hello", "SUCCESS")


def test_failures_have_the_tracebacks_of_their_agents(flower: Flower) -> None:
    flower.place.run("dispatch", "--agent", "loud-1", "--name", "say nothing", code=1)
    task = flower.task("say nothing", "FAILURE")
    assert task["exception"] == "TaskFailed('ValueError: nothing to say')"
    assert 'raise ValueError("nothing to say")' in task["traceback"]


def test_retries_are_seen_with_their_reason(flower: Flower) -> None:
    flower.place.run("dispatch", "--agent", "loud-1", "--name", "say later", "-i", "say=x", "-i", "fails=1")
    task = flower.task("say later", "SUCCESS")
    assert task["retries"] == 1
    assert task["retried"] is not None
    assert "TRANSIENT_ERROR" in task["exception"] or "not now" in task["exception"]
    assert 'raise ConductorError("not now", "TRANSIENT_ERROR")' in task["traceback"]


def test_requests_to_agents_say_from_whom_they_are(flower: Flower) -> None:
    payload = {"task": {"name": "asked", "input_data": {"say": "please"}}}
    asked = ["request", "conductor:agent:loud-1", "--sender", "curious", "--payload", json.dumps(payload)]
    flower.place.run(*asked)
    task = flower.task("task_assignment from curious", "SUCCESS")
    assert "'say': 'please'" in task["kwargs"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail("chromium and chromedriver are required here, and are not installed")
        pytest.skip("there is no chromium with chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*CHROMIUM, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def test_the_pages_show_it_to_people(flower: Flower, browser: webdriver.Chrome) -> None:
    flower.place.run("dispatch", "--agent", "loud-1", "--name", "say cheese", "-i", "say=cheese")
    flower.place.run("dispatch", "--agent", "loud-1", "--name", "say no", code=1)
    done, failed = flower.task("say cheese", "SUCCESS"), flower.task("say no", "FAILURE")
    rabbitmq = "amqp" in flower.place.directory.joinpath("conductor.yaml").read_text()
    [worker] = [name for name in flower.get("/api/workers") if name.startswith("loud-1@")]
    pages = {
        "workers": ("/workers", ["loud-1@"]),
        "worker": (f"/worker/{worker}", [worker, "conductor.agent.loud-1", "conductor.type.coding"]),
        # Of RabbitMQ it would ask the management plugin.
        "broker": ("/broker", ["127.0.0.1", *([] if rabbitmq else ["conductor.agent.loud-1"])]),
        "tasks": ("/tasks", ["say cheese", "say no", "SUCCESS", "FAILURE", "cheese"]),
        "task": (f"/task/{done['uuid']}", ["say cheese", "{'say': 'cheese'}", "CHEESE", "loud-1@"]),
        "failure": (f"/task/{failed['uuid']}", ["say no", "ValueError: nothing to say"]),
    }
    for name, (path, words) in pages.items():
        browser.get(f"{flower.url}{path}")
        for word in words:
            WebDriverWait(browser, 60).until(
                # Also what is on a tab that is not open.
                lambda page, word=word: (
                    word in page.find_element(By.TAG_NAME, "body").get_attribute("textContent")
                ),
                word,
            )
        assert "guest:guest" not in browser.page_source
        if directory := os.environ.get(PICTURES):
            if name == "failure":
                browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
            browser.save_screenshot(str(Path(directory) / f"flower-{name}.png"))


def celery(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CELERY, *arguments],
        env=environment(place.data),
        cwd=place.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_inspect_tells_of_the_node(flower: Flower) -> None:
    for method, word in (
        ("ping", "pong"),
        ("active_queues", "conductor.agent.loud-1"),
        ("registered", "conductor.execute_task"),
        ("stats", "prefetch_count"),
        ("active", "loud-1@"),
    ):
        done = celery(flower.place, "inspect", method)
        assert done.returncode == 0, (method, done.stdout, done.stderr)
        assert word in done.stdout, method
        assert "guest:guest" not in done.stdout


def test_events_are_printed_as_they_come(flower: Flower) -> None:
    command = [CELERY[0], "-u", *CELERY[1:], "events", "--dump"]
    seen: list[str] = []
    with subprocess.Popen(
        command,
        env=environment(flower.place.data),
        cwd=flower.place.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=seen.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            wait_until_sync(
                lambda: any("worker-heartbeat" in line or "loud-1@" in line for line in seen), timeout=60
            )
            flower.place.run("dispatch", "--agent", "loud-1", "--name", "say dump", "-i", "say=x")
            for word in ("task received: say dump", "task succeeded: say dump"):
                wait_until_sync(lambda word=word: any(word in line for line in seen), timeout=60)
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prot", "5556"], "Flower has no option --prot: did you mean --port?"),
        (["--max_taks=10"], "Flower has no option --max_taks: did you mean --max_tasks?"),
        (["--zzz"], "Flower has no option --zzz; they are listed"),
        (["--max-tasks", "10"], "--max-tasks needs a value: --max-tasks=VALUE"),
        (["5556"], "'5556' is no option: Flower's are written --name=value"),
    ],
)
def test_an_option_that_flower_does_not_know_is_refused(
    options: list[str], words: str, tmp_path: Path
) -> None:
    done = conductor(tmp_path, "flower", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_what_a_port_or_a_broker_lacks_is_said(flower: Flower, tmp_path: Path) -> None:
    port = flower.url.rpartition(":")[2]
    done = subprocess.run(
        [COMMAND, "flower", "--port", port],
        env=environment(flower.place.data),
        cwd=flower.place.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"Flower cannot listen on 127.0.0.1:{port}" in done.stderr
    away = environment(tmp_path) | {"CONDUCTOR_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [COMMAND, "flower"], env=away, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "The broker cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
