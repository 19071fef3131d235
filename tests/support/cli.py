"""The real `conductor` command as a process, and all processes that belong to one data directory."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from tests.support.waiting import wait_until_sync

COMMAND = Path(sys.executable).with_name("conductor")
LIMIT = 90.0


def environment(data_dir: Path) -> dict[str, str]:
    """The environment of a command that keeps everything in data_dir and knows of no other server."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
    return env | {"CONDUCTOR_DATA_DIR": str(data_dir), "COLUMNS": "120", "NO_COLOR": "1"}


def conductor(
    data_dir: Path,
    *arguments: str,
    cwd: Path | None = None,
    stdin: str = "",
    settings: Mapping[str, str] = MappingProxyType({}),
    command: Sequence[str | Path] = (COMMAND,),
) -> subprocess.CompletedProcess[str]:
    """Run the command, or another, to its end, with settings in its environment."""
    return subprocess.run(
        [*command, *arguments],
        env=environment(data_dir) | settings,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def on_terminal(data_dir: Path, *arguments: str, cwd: Path, keys: bytes = b"") -> tuple[int, str]:
    """Run the command on a terminal of 80 columns; the exit code, and what was on it without colours.

    The keys are pressed once it has written something.
    """
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = environment(data_dir) | {"TERM": "xterm"}
    del env["COLUMNS"]
    shown = bytearray()
    with subprocess.Popen(
        [COMMAND, *arguments],
        env=env,
        cwd=cwd,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(terminal)
        with contextlib.suppress(OSError):  # at its end
            while part := os.read(keyboard, 65536):
                shown += part
                if keys:
                    os.write(keyboard, keys)
                    keys = b""
        code = process.wait(LIMIT)
    os.close(keyboard)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


def processes_of(data_dir: Path) -> list[str]:
    """The processes that have the data directory in their environment, command line or working directory."""
    found: list[str] = []
    mark = str(data_dir)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            words = [*process.cmdline(), process.cwd(), *process.environ().values()]
            if any(mark in word for word in words):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
    return found


class Background:
    """A command that runs beside the test; its standard output and error are read as they come."""

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        cwd: Path | None = None,
        nohup: bool = False,
        command: Sequence[str | Path] = (COMMAND,),
    ) -> None:
        self.data_dir = data_dir
        self.out: list[str] = []
        self.err: list[str] = []
        # A session of its own, as a shell gives a job a process group of its own.
        self.process = subprocess.Popen(
            [*(["nohup"] if nohup else []), *command, *arguments],
            env=environment(data_dir),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=lines.extend, args=(stream,), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def __repr__(self) -> str:
        return f"code {self.process.poll()}\nout: {''.join(self.out)}\nerr: {''.join(self.err)}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        return [json.loads(line) for line in list(self.out)]

    def wait_for_event(self, **fields: Any) -> dict[str, Any]:
        """The first JSON line with these fields."""

        def find() -> dict[str, Any] | None:
            assert self.process.poll() is None or self._reading(), repr(self)
            return next((e for e in self.events if fields.items() <= e.items()), None)

        event = wait_until_sync(find, timeout=LIMIT)
        assert event is not None
        return event

    def wait_for_error_line(self, text: str) -> None:
        """Wait for a line on standard error."""
        wait_until_sync(lambda: any(text in line for line in list(self.err)), timeout=LIMIT)

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal to its whole process group, as a terminal does, and wait for the exit code."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        code = self.process.wait(LIMIT)
        for reader in self._readers:
            reader.join(LIMIT)
        return code

    def _reading(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)


@contextlib.contextmanager
def background(
    data_dir: Path,
    *arguments: str,
    cwd: Path | None = None,
    nohup: bool = False,
    command: Sequence[str | Path] = (COMMAND,),
) -> Iterator[Background]:
    """A command beside the test, `conductor` or another, ended with it."""
    started = Background(data_dir, *arguments, cwd=cwd, nohup=nohup, command=command)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGTERM)
