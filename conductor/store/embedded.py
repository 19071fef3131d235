"""A real Valkey server, started when no other is configured and gone with its owner."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from conductor.core.exceptions import ConfigurationError
from conductor.core.urls import mask_url
from conductor.store import _valkey

_DESCRIPTION, _LOCK, _LOG = "server.json", "server.lock", "valkey.log"
_GUARD = Path(__file__).with_name("_guard.py")
_PORT_ATTEMPTS = 10
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LOCK_SECONDS = 15.0
_POLL_SECONDS = 0.01
_ADDRESS_IN_USE = "Address already in use"


class EmbeddedServer:
    """A Valkey on the loopback interface with an append-only file in data_dir.

    It lives in a session of its own, so a Ctrl-C in the terminal does not reach it, and ends within seconds
    of its owner, the process that called `start`, however that ends. Data survive a stop; a crash of the
    machine loses at most the last second of writes. One server per data_dir, over all processes.

    Args:
        data_dir: where the data are; made with mode 0700 where it does not exist.
        port: a port to insist on; by default a free one, the same again after `stop` and `start` if possible.
        settings: more of Valkey's configuration, such as `{"maxmemory": "64mb"}`. With "requirepass" the url
            contains the password.

    Methods block and may be called from any thread.
    """

    def __init__(
        self, data_dir: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        if port is not None and not 1 <= port <= 65535:
            raise ConfigurationError(f"port: {port} is not between 1 and 65535")
        self._data_dir = Path(data_dir).expanduser().absolute()
        self._wanted_port = port
        self._settings = _valkey.check_settings(settings or {})
        self._lock = threading.RLock()
        self._port: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def url(self) -> str:
        """The URL for clients, with the password if there is one; RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError("the embedded server was never started: call start() first")
        return _valkey.url_of(self._port, self._settings)

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return self._pid if self.is_running else None

    @property
    def data_dir(self) -> Path:
        """Where the data are; absolute."""
        return self._data_dir

    @property
    def is_running(self) -> bool:
        """Whether this object's server process lives."""
        guard = self._guard
        return guard is not None and guard.poll() is None

    def __repr__(self) -> str:
        state = mask_url(self.url) if self.is_running else "stopped"
        return f"<EmbeddedServer {state} in {self._data_dir}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it answers; nothing happens if it runs already.

        Raises:
            ConfigurationError: EMBEDDED_UNSUPPORTED (no binary for this platform), EMBEDDED_DATA_DIR
                (data_dir cannot be used), EMBEDDED_IN_USE (another server has data_dir), EMBEDDED_FAILED (it
                did not start; the message ends with what it logged).
        """
        with self._lock:
            if self.is_running:
                return
            binary = _valkey.find_binary()
            lock = _locked(self._data_dir)
            try:
                self._start_on_some_port(binary, lock)
            finally:
                os.close(lock)

    def stop(self) -> None:
        """End the server and return when it has written its data and is gone. Idempotent."""
        with self._lock:
            guard, pid = self._guard, self._pid
            self._guard = self._pid = None
            if guard is None:
                return
            guard.terminate()
            try:
                guard.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                if pid is not None:
                    _kill(pid)
                guard.kill()
                guard.wait()

    @staticmethod
    def running(data_dir: Path) -> str | None:
        """Return the URL of the live server that has data_dir, or None. Of any process; takes at most 2 s."""
        found = _read_description(Path(data_dir).expanduser())
        if found is None:
            return None
        try:
            return str(found["url"]) if _answering_pid(str(found["url"])) == found["pid"] else None
        except (redis.RedisError, ValueError):
            return None

    def _start_on_some_port(self, binary: Path, lock: int) -> None:
        for _attempt in range(_PORT_ATTEMPTS):
            port = self._wanted_port or _free_port(preferred=self._port)
            error = self._start_on(binary, lock, port)
            if error is None:
                self._port = port
                _write_description(self._data_dir, self.url, self._pid)
                return
            if self._wanted_port is not None or _ADDRESS_IN_USE not in error:
                break
        raise ConfigurationError(
            f"the embedded server in {self._data_dir} did not start on port {port}; it says:\n{error}",
            error_code="EMBEDDED_FAILED",
            details={"data_dir": str(self._data_dir), "port": port},
        )

    def _start_on(self, binary: Path, lock: int, port: int) -> str | None:
        """Start the server on port and return None, or what it logged if it ended."""
        log = os.open(self._data_dir / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        log_start = os.fstat(log).st_size
        try:
            self._guard, self._pid = _spawn(
                binary, _valkey.render(self._data_dir, port, self._settings), self._data_dir, lock, log
            )
        finally:
            os.close(log)
        try:
            if _wait_until_ready(self._guard, self._pid, _valkey.url_of(port, self._settings)):
                return None
        except BaseException:
            self.stop()
            raise
        self.stop()
        with (self._data_dir / _LOG).open("rb") as file:
            file.seek(log_start)
            return file.read()[-2000:].decode(errors="replace").strip() or "(nothing)"


def _locked(data_dir: Path) -> int:
    """Make data_dir and return a file descriptor that holds its lock.

    The descriptor is handed to the guard and the server, so that the lock is held exactly as long as a server
    uses the directory, whatever becomes of the owner.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"data_dir: {data_dir} cannot be used ({error.strerror}): make it a writable directory or set "
            "CONDUCTOR_DATA_DIR to one",
            error_code="EMBEDDED_DATA_DIR",
            details={"data_dir": str(data_dir)},
        ) from error
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A server whose owner is gone is about to end; so is one without a description.
            if not _owner_lives(found := _read_description(data_dir)) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            os.close(lock)
            raise _in_use(data_dir, found) from None
        return lock


def _in_use(data_dir: Path, found: dict[str, Any] | None) -> ConfigurationError:
    url = mask_url(str(found["url"])) if found else "an unknown URL"
    pid = found["pid"] if found else "unknown"
    return ConfigurationError(
        f"data_dir: {data_dir} is in use by another server (pid {pid}, {url}): use that one, stop it, or "
        "take another data_dir",
        error_code="EMBEDDED_IN_USE",
        details={"data_dir": str(data_dir), "pid": pid, "url": url},
    )


def _owner_lives(found: dict[str, Any] | None) -> bool:
    if found is None:
        return False
    try:
        os.kill(int(found["owner"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _spawn(
    binary: Path, configuration: bytes, data_dir: Path, lock: int, log: int
) -> tuple[subprocess.Popen[bytes], int | None]:
    """Start the guard, and by it the server; return the guard and the server's process id."""
    ready, report = os.pipe()
    arguments = [
        *(
            sys.executable,
            "-I",
            "-S",
            str(_GUARD),
            str(os.getpid()),
            str(data_dir / _DESCRIPTION),
            str(report),
        ),
        *(str(binary), "-"),
    ]
    try:
        guard = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=data_dir,
            pass_fds=(report, lock),
            start_new_session=True,
            umask=0o077,
        )
    finally:
        os.close(report)
    with os.fdopen(ready, "rb") as pipe:
        # The configuration goes by standard input: a password on the command line could be seen by anybody.
        if guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError), guard.stdin as stdin:
                stdin.write(configuration)
        pid = pipe.read()
    return guard, int(pid) if pid else None


def _wait_until_ready(guard: subprocess.Popen[bytes], pid: int | None, url: str) -> bool:
    """Wait for the answer of the very server that was started, not of another that got its port."""
    deadline = time.monotonic() + _START_SECONDS
    while guard.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            if _answering_pid(url) == pid:
                return True
        time.sleep(_POLL_SECONDS)
    return False


def _answering_pid(url: str) -> int:
    """Return the process id that the server at url gives; RedisError if it does not answer or still loads."""
    client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=None)
    with contextlib.closing(client):
        client.ping()
        return int(client.info("server")["process_id"])


def _free_port(preferred: int | None) -> int:
    """Return a port that was free a moment ago."""
    for port in (preferred, 0) if preferred else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((_valkey.HOST, port))
                return int(probe.getsockname()[1])
    raise ConfigurationError(f"no free port on {_valkey.HOST}", error_code="EMBEDDED_FAILED")


def _read_description(data_dir: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((data_dir / _DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"url", "pid", "owner"} <= found.keys() else None


def _write_description(data_dir: Path, url: str, pid: int | None) -> None:
    temporary = data_dir / f"{_DESCRIPTION}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": url, "pid": pid, "owner": os.getpid()}, file)
    temporary.replace(data_dir / _DESCRIPTION)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
