"""Runs a node for as long as its owner wants; a program of its own, which imports nothing of ours.

Called as `python -I -S _node_guard.py GRACE_SECONDS COMMAND...`. Standard input is a pipe that the owner
holds. An "e" on it tells the node to end (SIGTERM) and kills it after GRACE_SECONDS, a "k" kills it at
once; when the pipe closes, the owner is gone and the node is killed soon. Nothing the node started
outlives it: on Linux this process adopts the orphans among its descendants. The exit status is the
node's, 128 + n where signal n ended it.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KILL = b"k"
ORPHAN_SECONDS = 2.0


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    """Kill generation after generation: the children of a killed child become ours."""
    while alive := children():
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def children() -> list[int]:
    """The ids of the direct children of this process."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def end_on_demand(node: subprocess.Popen[bytes], grace: float) -> None:
    """Wait for the owner's word or its end, then end the node."""
    word = os.read(0, 1)
    if word == KILL:
        node.kill()
        return
    node.terminate()
    killer = threading.Timer(grace if word else ORPHAN_SECONDS, node.kill)
    killer.daemon = True
    killer.start()
    if os.read(0, 1) == KILL:
        node.kill()


def main(grace: float, command: list[str]) -> int:
    """Run the node; see the module."""
    adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN, which the node would inherit.
        signal.signal(number, lambda *_: None)
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
    threading.Thread(target=end_on_demand, args=(node, grace), daemon=True).start()
    code = node.wait()
    kill_descendants()
    return code if code >= 0 else 128 - code


def end_with_parent() -> None:
    """Let the node end should this process be killed itself; on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    os._exit(main(float(sys.argv[1]), sys.argv[2:]))
