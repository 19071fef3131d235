"""The embedded server: what it keeps, whom it serves, and with whom it ends."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from conductor.core.exceptions import ConfigurationError
from conductor.store.embedded import EmbeddedServer
from tests.support.waiting import wait_until_sync

OWNER = """
import os, sys, threading, time
from pathlib import Path
from conductor.store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(server.url, server.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def owner_process(
    data_dir: Path, *, forking: bool = False
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A process that owns a server it started in a thread that has ended; with the server's URL and pid."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir), "fork" if forking else ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with owner:
        try:
            assert owner.stdout is not None
            url, pid = owner.stdout.readline().split()
            yield owner, url, int(pid)
        finally:
            owner.kill()


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, retry=None)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_serves_on_loopback_and_is_gone_after_stop(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data") as server:
        pid = server.pid
        assert server.url.startswith("redis://127.0.0.1:")
        assert server.is_running
        assert pid is not None
        assert client(server.url).info("server")["process_id"] == pid
    assert not psutil.pid_exists(pid)
    assert server.pid is None
    with pytest.raises(redis.ConnectionError):
        client(server.url).ping()


def test_start_and_stop_are_idempotent(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.stop()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()


def test_data_and_port_survive_stop_and_start(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    with server:
        url = server.url
        client(url).set("key", "value")
    with server:
        assert server.url == url
        assert client(url).get("key") == "value"


def test_writes_survive_a_kill_of_the_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert server.pid is not None
        config = client(server.url).config_get("append*")
        assert (config["appendonly"], config["appendfsync"]) == ("yes", "everysec")
        client(server.url).set("key", "value")
        os.kill(server.pid, signal.SIGKILL)
        wait_until_sync(lambda: not server.is_running)
        server.start()
        assert client(server.url).get("key") == "value"


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "new"
    with EmbeddedServer(data_dir) as server:
        client(server.url).set("key", "value")
        assert mode(data_dir) == 0o700
        for path in data_dir.rglob("*"):
            assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_the_description_goes_with_the_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert EmbeddedServer.running(tmp_path) == server.url
        assert (tmp_path / "server.json").exists()
    assert EmbeddedServer.running(tmp_path) is None
    assert not (tmp_path / "server.json").exists()


def test_a_stale_description_is_recognised_even_if_its_port_serves_again(tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    with EmbeddedServer(stale):
        description = (stale / "server.json").read_text()
    (stale / "server.json").write_text(description)
    assert EmbeddedServer.running(stale) is None
    with EmbeddedServer(tmp_path / "other") as other:
        (stale / "server.json").write_text(f'{{"url": "{other.url}", "pid": 1, "owner": {os.getpid()}}}')
        assert EmbeddedServer.running(stale) is None
        with EmbeddedServer(stale) as server:
            assert EmbeddedServer.running(stale) == server.url


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": "nonsense", "pid": 1, "owner": 1}', "\0"])
def test_a_damaged_description_is_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)
    assert EmbeddedServer.running(tmp_path) is None


def test_a_second_owner_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, pytest.raises(ConfigurationError) as caught:
        EmbeddedServer(tmp_path).start()
    assert caught.value.error_code == "EMBEDDED_IN_USE"
    assert server.url in caught.value.message
    assert str(caught.value.details["pid"]) in caught.value.message


def test_a_second_process_is_told_too(tmp_path: Path) -> None:
    with (
        owner_process(tmp_path) as (_, url, pid),
        pytest.raises(ConfigurationError, match=f"pid {pid}, {url}"),
    ):
        EmbeddedServer(tmp_path).start()


def test_of_many_owners_at_once_one_wins(tmp_path: Path) -> None:
    servers = [EmbeddedServer(tmp_path) for _ in range(6)]

    def start(server: EmbeddedServer) -> bool:
        try:
            server.start()
        except ConfigurationError as error:
            assert error.error_code == "EMBEDDED_IN_USE"  # noqa: PT017
            return False
        return True

    with ThreadPoolExecutor(len(servers)) as pool:
        assert sum(pool.map(start, servers)) == 1
    for server in servers:
        server.stop()


def test_it_ends_with_a_killed_owner_and_frees_the_directory(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, url, pid):
        client(url).set("key", "value")
        owner.kill()
        owner.wait()
        with EmbeddedServer(tmp_path) as server:
            assert client(server.url).get("key") == "value"
        wait_until_sync(lambda: not psutil.pid_exists(pid))


def test_it_ends_with_an_owner_that_returns_without_stopping_it(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, _, pid):
        owner.communicate("")
        assert owner.returncode == 0
        wait_until_sync(lambda: not psutil.pid_exists(pid))
        wait_until_sync(lambda: not (tmp_path / "server.json").exists())


def test_what_the_owner_forked_keeps_nothing_alive(tmp_path: Path) -> None:
    with owner_process(tmp_path, forking=True) as (owner, _, pid):
        (child,) = (child for child in psutil.Process(owner.pid).children() if not child.children())
        try:
            owner.kill()
            owner.wait()
            wait_until_sync(lambda: not psutil.pid_exists(pid))
            assert child.is_running()
        finally:
            child.kill()


def test_an_interrupt_from_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, url, pid):
        assert os.getsid(pid) != os.getsid(owner.pid)
        assert os.getpgid(pid) != os.getpgid(owner.pid)
        assert client(url).ping()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_it_ends_with_its_guard(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        guard = process.parent()
        assert guard is not None
        guard.kill()
        process.wait(timeout=10)
        wait_until_sync(lambda: not server.is_running)


def test_a_password_is_needed_and_in_the_url_but_not_in_the_repr(tmp_path: Path) -> None:
    password = 'p@ss "w\\rd/ #1'
    with EmbeddedServer(tmp_path, settings={"requirepass": password}) as server:
        assert client(server.url).ping()
        assert EmbeddedServer.running(tmp_path) == server.url
        assert "w%5Crd" in server.url
        assert "w%5Crd" not in repr(server)
        assert server.pid is not None
        assert "w\\rd" not in " ".join(psutil.Process(server.pid).cmdline())
        with pytest.raises(redis.AuthenticationError):
            client(server.url.replace("w%5Crd", "")).ping()
        with pytest.raises(ConfigurationError) as caught:
            EmbeddedServer(tmp_path).start()
        assert "w%5Crd" not in str(caught.value.to_dict())


def test_settings_reach_the_server(tmp_path: Path) -> None:
    settings = {
        "maxmemory": "64mb",
        "save": "900 1 300 10",
        "client-output-buffer-limit": "pubsub 1mb 1mb 60",
    }
    with EmbeddedServer(tmp_path, settings=settings) as server:
        config = client(server.url).config_get("*")
    assert config["maxmemory"] == str(64 * 2**20)
    assert config["save"] == "900 1 300 10"
    assert "pubsub 1048576 1048576 60" in str(config["client-output-buffer-limit"])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": "1"}, "port"),
        ({"dir": "/"}, "dir"),
        ({"a b": "1"}, "a b"),
        ({"maxmemory": 5}, "maxmemory"),
    ],
)
def test_a_setting_that_cannot_be_given_is_named(
    tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        EmbeddedServer(tmp_path, settings=settings)


def test_a_setting_the_server_refuses_shows_what_it_said(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, settings={"maxmemory": "plenty"})
    with pytest.raises(ConfigurationError, match="maxmemory") as caught:
        server.start()
    assert caught.value.error_code == "EMBEDDED_FAILED"
    assert server.pid is None


def test_a_given_port_is_kept_and_a_taken_one_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)) as caught:
            EmbeddedServer(tmp_path, port=port).start()
        assert caught.value.error_code == "EMBEDDED_FAILED"
    with EmbeddedServer(tmp_path, port=port) as server:
        assert server.url == f"redis://127.0.0.1:{port}/0"


def test_a_port_that_somebody_took_meanwhile_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conductor.store import embedded

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        free_port = embedded._free_port
        monkeypatch.setattr(
            embedded, "_free_port", lambda preferred: next(ports, None) or free_port(preferred)
        )
        with EmbeddedServer(tmp_path) as server:
            assert client(server.url).ping()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_an_impossible_port_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigurationError, match=str(port)):
        EmbeddedServer(tmp_path, port=port)


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="CONDUCTOR_DATA_DIR") as caught:
            EmbeddedServer(data_dir).start()
        assert caught.value.error_code == "EMBEDDED_DATA_DIR"
        assert str(data_dir) in caught.value.message


def test_an_unsupported_platform_is_told_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(ConfigurationError, match="CONDUCTOR_BROKER_URL") as caught:
        EmbeddedServer(tmp_path).start()
    assert caught.value.error_code == "EMBEDDED_UNSUPPORTED"


def test_the_url_before_the_first_start_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="start"):
        _ = EmbeddedServer(tmp_path).url


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert client(server.url).ping()
    finally:
        server.stop()
