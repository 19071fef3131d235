"""Run a server for as long as its owner lives; a program of its own, which imports nothing of ours.

Called as `python -I -S _guard.py OWNER_PID DESCRIPTION REPORT_FD SERVER [ARGUMENT...]`. It starts SERVER,
writes the server's process id to REPORT_FD, and ends it (SIGTERM, then SIGKILL) once it is told to by SIGTERM
or its parent is no longer OWNER_PID. DESCRIPTION, the file that tells others of the server, goes with it.

It is a process because nothing else notices a SIGKILL of the owner on every system: Linux's PR_SET_PDEATHSIG
fires when the thread that started the server ends, and a pipe is kept open by whatever the owner forked.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


class Guard:
    """One server and its owner. Not thread-safe; the process has one thread."""

    def __init__(self, owner: int, server: list[str]) -> None:
        self._owner = owner
        self._told_to_stop = False
        self._wake, wakeup = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        self.pid = self._start(server)

    def run(self) -> int:
        """Wait for the end of the server, bringing it about if need be, and return its exit status."""
        stop_at: float | None = None
        while (status := self._ended()) is None:
            if stop_at is None and (self._told_to_stop or os.getppid() != self._owner):
                self._signal(signal.SIGTERM)
                stop_at = time.monotonic() + STOP_SECONDS
            elif stop_at is not None and time.monotonic() > stop_at:
                self._signal(signal.SIGKILL)
            if select.select([self._wake], [], [], POLL_SECONDS)[0]:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
        return status

    def _start(self, server: list[str]) -> int:
        guard = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            _die_with_parent(guard)
            os.execv(server[0], server)  # noqa: S606
        finally:
            os._exit(127)

    def _on_stop(self, *_: object) -> None:
        self._told_to_stop = True

    def _ended(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _die_with_parent(parent: int) -> None:
    """Let the server stop should the guard itself be killed; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def main(arguments: list[str]) -> int:
    """Run the guard; the exit status is the server's, 128 + N where signal N ended it."""
    owner, description, report = int(arguments[0]), arguments[1], int(arguments[2])
    os.set_inheritable(report, False)  # noqa: FBT003
    guard = Guard(owner, arguments[3:])
    with contextlib.suppress(BrokenPipeError):
        os.write(report, str(guard.pid).encode())
    os.close(report)
    status = guard.run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(description)  # noqa: PTH108 - pathlib would double the guard's time to start
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
