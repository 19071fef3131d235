"""Runs one command and lets nothing that it started outlive it, or outlive whoever asked for it.

A script, started by path: `python supervisor.py COMMAND...`. Standard input is a pipe that the asking
process holds open. When it closes, by intention or because that process was killed, everything the
command started is killed too, also what left its process group: on Linux this process adopts the orphans
among its descendants.

The exit code is the command's own; 128 + n where signal n ended it; 127 where it could not be started.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs (Linux; elsewhere the process group has to do)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """The ids of the direct children of this process, of all its threads."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def kill_descendants() -> None:
    """Kill generation after generation: the children of a killed child become ours."""
    while alive := children():
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def end_with_the_asker() -> None:
    """Wait for the end of standard input, then kill everything, this process included."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    kill_descendants()
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    adopt_orphans()
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    threading.Thread(target=end_with_the_asker, daemon=True).start()
    code = process.wait()
    kill_descendants()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
