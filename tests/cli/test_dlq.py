"""`conductor dlq` as operators use it, on every broker."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.broker.addresses import Addresses
from conductor.core.models import TaskDefinition
from conductor.store.embedded import EmbeddedServer
from tests.cli.test_usage import invoke
from tests.support.cli import COMMAND, conductor, environment
from tests.support.letters import a_letter, empty, put, put_raw, take_all, task_letter
from tests.support.projects import write_files


@pytest.fixture(params=["embedded", "valkey", "rabbitmq"])
def url(
    request: pytest.FixtureRequest, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The broker that commands in the working directory find."""
    monkeypatch.chdir(tmp_path)
    if request.param == "embedded":
        with EmbeddedServer(tmp_path / "data") as server:
            yield server.url
        return
    store = f"{valkey_url.rpartition('/')[0]}/12"
    url = store if request.param == "valkey" else request.getfixturevalue("rabbitmq_url")
    empty(url)
    write_files(tmp_path, {"conductor.yaml": f"broker_url: {url}\nredis: {{url: {store}}}\n"})
    yield str(url)


@pytest.fixture
def nobody(url: str) -> str:
    """A broker without dead letters."""
    return url


def dlq(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = conductor(tmp_path / "data", "dlq", *arguments)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def ids_in(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [letter["letter_id"] for letter in json.loads(done.stdout)["letters"]]


def test_a_list_says_what_is_dead_and_why(url: str, tmp_path: Path) -> None:
    task = task_letter(
        Addresses(url, url), TaskDefinition(name="review of demo"), "review-1",
        age=7300, reason="retries_exhausted", attempts=4, agent_type="review",
        error_message="the disk\nis full " * 9,
    )  # fmt: skip
    event = a_letter(130, reason="undecodable", channel="conductor:orders", error_code="BAD_ORDER")
    put(url, task, event)
    put_raw(url, "no letter")
    done = dlq(tmp_path, "list")
    assert done.returncode == 0, done.stderr
    heads, first, second, number, unreadable = done.stdout.splitlines()
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert heads.split() == ["id", "age", "reason", "task", "or", "message", "agent", "tries", "error"]
    for word in (
        "2h",
        "retries_exhausted",
        "review of demo",
        "review-1",
        "4",
        "the disk is full",
        task.letter_id,
    ):
        assert word in first
    for word in ("2m", "undecodable", "conductor:orders", "BAD_ORDER", event.letter_id):
        assert word in second
    assert number == "2 of 2 dead letters"
    assert unreadable == "left in the queue: 1 message that is no dead letter"


def test_a_list_is_chosen_paged_and_json(url: str, tmp_path: Path) -> None:
    letters = [
        a_letter(age, reason=reason, agent_id=agent)
        for age, reason, agent in (
            (90000, "expired", "a"), (5000, "expired", "b"), (100, "rejected", "a"), (5, "expired", "a"),
        )
    ]  # fmt: skip
    put(url, *letters)
    ids = [letter.letter_id for letter in letters]
    document = json.loads(dlq(tmp_path, "list", "--json").stdout)
    assert document["letters"] == [letter.model_dump(mode="json") for letter in letters]
    assert (document["total"], document["unreadable"]) == (4, 0)
    assert ids_in(dlq(tmp_path, "list", "--json", "--reason", "expired", "--agent", "a")) == [ids[0], ids[3]]
    assert ids_in(dlq(tmp_path, "list", "--json", "--older-than", "1h", "--newer-than", "1d")) == [ids[1]]
    assert ids_in(dlq(tmp_path, "list", "--json", "--limit", "2", "--offset", "1")) == ids[1:3]
    assert dlq(tmp_path, "list", "--limit", "1").stdout.endswith("1 of 4 dead letters\n")


def test_no_dead_letters_are_good_news(nobody: str, tmp_path: Path) -> None:
    done = dlq(tmp_path, "list")
    assert (done.returncode, done.stdout) == (0, "0 of 0 dead letters\n")
    assert json.loads(dlq(tmp_path, "list", "--json").stdout) == {"letters": [], "total": 0, "unreadable": 0}


def test_show_tells_everything_by_the_id_of_the_letter_or_the_task(url: str, tmp_path: Path) -> None:
    task = TaskDefinition(name="review of demo", input_data={"project": "/srv/grüße"})
    letter = task_letter(
        Addresses(url, url), task, "review-1",
        error_type="ToolError", error_code="TOOL_FAILED", error_message="the disk is full",
        traceback="  File agent.py, line 3\nToolError: the disk is full", workflow_id="w-1", escalated=True,
    )  # fmt: skip
    put(url, letter)
    for name in (letter.letter_id, task.task_id):
        done = dlq(tmp_path, "show", name)
        assert done.returncode == 0, done.stderr
        for words in (
            f"id         {letter.letter_id}",
            "error      ToolError TOOL_FAILED: the disk is full",
            f"task       review of demo ({task.task_id})",
            "workflow   w-1",
            "queue      conductor.agent.review-1",
            "escalated  yes",
            "traceback\n  File agent.py, line 3\n",
            "original task\n{\n",
            '"project": "/srv/grüße"',
        ):
            assert words in done.stdout
    document = json.loads(dlq(tmp_path, "show", task.task_id, "--json").stdout)
    assert document == letter.model_dump(mode="json")


@pytest.mark.parametrize("command", ["show", "replay", "purge"])
def test_an_unknown_id_is_a_sentence(nobody: str, tmp_path: Path, command: str) -> None:
    done = dlq(tmp_path, command, "nobody-knows")
    assert done.returncode == 1
    assert "here is no dead letter" in done.stderr
    assert "nobody-knows" in done.stderr


def test_replay_sends_back_what_is_chosen(url: str, tmp_path: Path) -> None:
    addresses = Addresses(url, url if url.startswith("redis") else "redis://unused")
    letters = [
        task_letter(
            addresses, TaskDefinition(name=f"task {number}"), f"{tmp_path.name}-{number}", reason=reason
        )
        for number, reason in enumerate(("expired", "rejected", "expired", "expired"))
    ]
    put(url, *letters)
    done = dlq(tmp_path, "replay", letters[3].task_id or "")
    assert (done.returncode, done.stdout) == (0, "replayed 1 dead letter\n"), done.stderr
    done = dlq(tmp_path, "replay", "--reason", "expired", "--json")
    assert json.loads(done.stdout)["replayed"] == [letters[0].letter_id, letters[2].letter_id]
    assert ids_in(dlq(tmp_path, "list", "--json")) == [letters[1].letter_id]
    assert dlq(tmp_path, "replay", "--all").stdout == "replayed 1 dead letter\n"
    for letter in letters:
        [message] = take_all(url, letter.queue or "")
        assert message.headers["id"] == letter.task_id


def test_what_cannot_be_replayed_is_a_failure_that_says_why(url: str, tmp_path: Path) -> None:
    letter = a_letter(queue=None)
    put(url, letter)
    done = dlq(tmp_path, "replay", "--all")
    assert done.returncode == 1
    assert f"not replayed: {letter.letter_id}: nobody knows the queue it came from" in done.stdout
    assert ids_in(dlq(tmp_path, "list", "--json")) == [letter.letter_id]


def test_purge_deletes_one_at_once_and_several_only_when_it_is_sure(url: str, tmp_path: Path) -> None:
    letters = [a_letter(reason="expired") for _ in range(4)]
    put(url, *letters)
    assert dlq(tmp_path, "purge", letters[1].letter_id).stdout == "deleted 1 dead letter\n"
    done = dlq(tmp_path, "purge", "--reason", "expired")
    assert done.returncode == 2
    assert "this deletes 3 dead letters: say --yes" in done.stderr
    assert len(ids_in(dlq(tmp_path, "list", "--json"))) == 3
    assert json.loads(dlq(tmp_path, "purge", "--all", "--yes", "--json").stdout) == {"purged": 3}
    assert dlq(tmp_path, "purge", "--all").stdout == "deleted 0 dead letters\n"


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\n", 0, 0), ("\n", 1, 2), ("\x03", 128 + signal.SIGINT, 2)]
)
@pytest.mark.parametrize("url", ["valkey"], indirect=True)
def test_on_a_terminal_it_asks(url: str, tmp_path: Path, answer: str, code: int, left: int) -> None:
    put(url, a_letter(), a_letter())
    keyboard, terminal = pty.openpty()
    command = subprocess.Popen(
        [COMMAND, "dlq", "purge", "--all"],
        env=environment(tmp_path / "data"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_own_the_terminal,
    )
    os.close(terminal)
    shown = bytearray()
    while b"[y/N]" not in shown:
        shown += os.read(keyboard, 1000)
    assert b"Delete 2 dead letters for good?" in shown
    os.write(keyboard, answer.encode())
    assert command.wait(60) == code
    os.close(keyboard)
    assert len(ids_in(dlq(tmp_path, "list", "--json"))) == left


@pytest.mark.parametrize("url", ["valkey"], indirect=True)
@pytest.mark.parametrize("columns", [60, 72, 80, 100])
def test_a_terminal_of_any_width_shows_ids_and_cuts_errors(url: str, tmp_path: Path, columns: int) -> None:
    long = a_letter(
        90000, reason="retries_exhausted", attempts=4, agent_id="line_lengths-1",
        task_name="review of the demo project", error_message="the disk is full " * 9,
    )  # fmt: skip
    short = a_letter(130, error_message="no")
    put(url, long, short)
    keyboard, terminal = pty.openpty()
    env = environment(tmp_path / "data") | {"COLUMNS": str(columns)}
    command = subprocess.Popen([COMMAND, "dlq", "list"], env=env, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = bytearray()
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while part := os.read(keyboard, 1000):
            shown += part
    os.close(keyboard)
    assert command.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    heads, first, second, _ = text.splitlines()
    assert heads.split()[:3] == ["id", "age", "reason"]
    assert first.split()[:3] == [long.letter_id[:8], "1d", "retries_exhausted"]
    assert re.search(r" 4  the.*…$", first), text
    assert second.split()[:3] == [short.letter_id[:8], "2m", "rejected"]
    assert second.rstrip().endswith("  1  no")
    assert all(len(line) <= columns for line in text.splitlines())


def _own_the_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_without_a_redis_all_but_the_replay_of_tasks_works(
    rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    empty(rabbitmq_url)
    write_files(tmp_path, {"conductor.yaml": f"broker_url: {rabbitmq_url}\n"})
    task = task_letter(Addresses(rabbitmq_url, "redis://unused"), TaskDefinition(name="t"), tmp_path.name)
    event, other = a_letter(), a_letter()
    put(rabbitmq_url, task, event, other)
    assert len(ids_in(dlq(tmp_path, "list", "--json"))) == 3
    assert dlq(tmp_path, "purge", other.letter_id).returncode == 0
    done = dlq(tmp_path, "replay", "--all")
    assert done.returncode == 1
    assert "replayed 1 dead letter\n" in done.stdout
    assert f"{task.letter_id}: the record of its task is in a Redis that is not configured" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "say which: an ID, a filter such as --reason, or --all"),
        (["purge", "--yes"], "say which: an ID, a filter such as --reason, or --all"),
        (["purge", "x", "--all"], "give an ID or --all, not both"),
        (["list", "--reason", "boredom"], "'boredom' is not one of 'retries_exhausted'"),
        (["list", "--older-than", "2 weeks"], "'2 weeks' is not a time such as 90s"),
        (["replay", "--newer-than", "-1h"], "'-1h' is not a time such as 90s"),
        (["list", "--limit", "0"], "Invalid value for '--limit'"),
        (["show"], "Missing argument"),
        (["list"], "start one with 'conductor up', or set CONDUCTOR_BROKER_URL"),
    ],
)
def test_wrong_use_is_explained(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("dlq", *arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "broker", ["redis://:hidden-word@127.0.0.1:1/0", "amqp://guest:hidden-word@127.0.0.1:1//"]
)
def test_a_broker_that_is_not_there_is_a_failure_without_its_password(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDUCTOR_BROKER_URL", broker)
    monkeypatch.setenv("CONDUCTOR_BUS", '{"connect_timeout": 0.5}')
    result = invoke("dlq", "list")
    assert result.exit_code == 1
    assert "error: The broker cannot be reached to list dead letters" in result.output
    assert "hidden-word" not in result.output


def test_completion_knows_the_reasons(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"_CONDUCTOR_COMPLETE": "complete_bash", "COMP_CWORD": "4"}
    env |= {"COMP_WORDS": "conductor dlq list --reason re"}
    done = subprocess.run([COMMAND], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert set(done.stdout.split()) == {"retries_exhausted", "rejected", "refused"}
