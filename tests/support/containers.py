"""Local processes with the interface of the containers that pytest-celery's nodes wrap."""

import contextlib
import os
import signal
import subprocess
import uuid
from pathlib import Path

import psutil

from tests.support.waiting import wait_until_sync

#: Seconds for a process to become ready; far more than it needs.
READY_LIMIT = 60.0


class LocalContainer:
    """A process in a process group of its own; what it prints is its log."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], directory: Path, ready_prompt: str
    ) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.celeryconfig: dict[str, str] = {}
        self._command = command
        self._environment = environment
        self._log = directory / f"{name}-{self.id[:8]}.log"
        self._ready_prompt = ready_prompt
        self._read_from = 0
        self._start()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def status(self) -> str:
        """Docker's words: running or exited."""
        return "running" if self._process.poll() is None else "exited"

    @property
    def exit_code(self) -> int | None:
        """The status the process ended with."""
        return self._process.poll()

    def children(self) -> list[int]:
        """The ids of the processes it started."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ready(self) -> bool:
        """Wait until the process says that it is ready; fail with its log when it ends instead."""

        def look() -> bool:
            assert self.status == "running", f"{self.name} ended with {self.exit_code}:\n{self.logs()}"
            return self._ready_prompt in self.logs()

        try:
            return wait_until_sync(look, READY_LIMIT, 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog of {self.name}:\n{self.logs()}") from None

    def logs(self) -> str:
        """All it printed since it was started last."""
        return self._log.read_bytes()[self._read_from :].decode(errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the process alone; SIGKILL to its whole group, as the end of a machine does."""
        number = _signal(signal)
        with contextlib.suppress(ProcessLookupError):
            if number == _signal("SIGKILL"):
                os.killpg(self.pid, number)
                self._process.wait(10)
            else:
                os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end and give the exit status."""
        return self._process.wait(timeout)

    def reload(self) -> None:
        """Nothing is cached."""

    def restart(self, timeout: float = 10.0) -> None:
        """End it in good order and start it again."""
        self.kill("SIGTERM")
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._start()
        self.ready()

    def exec_run(self, command: str) -> tuple[int, bytes]:
        """Run a shell command in the same environment."""
        done = subprocess.run(
            command, shell=True, env=self._environment, capture_output=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    def teardown(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, _signal("SIGKILL"))
        self._process.wait(10)

    def _start(self) -> None:
        self._read_from = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )


class ServerContainer:
    """A server that runs already and belongs to somebody else, as a container."""

    status = "running"

    def __init__(self, name: str, url: str) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.celeryconfig = {"url": url, "host_url": url}

    def ready(self) -> bool:
        """It runs already."""
        return True

    def logs(self) -> str:
        """They are not ours."""
        return ""

    def reload(self) -> None:
        """Nothing is cached."""

    def teardown(self) -> None:
        """Whoever started it ends it."""


def _signal(name: str | int) -> int:
    return name if isinstance(name, int) else int(getattr(signal, name))
