"""Processes to measure in, rounds that alternate between the peers, and the figures made of them."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
_PROBE_SECONDS = 20.0
_END_SECONDS = 15.0


@dataclass(frozen=True)
class Plan:
    """How much to measure; `quick` is only there to show that everything works."""

    url: str
    quick: bool

    @property
    def rounds(self) -> int:
        """How often each peer has its turn."""
        return 1 if self.quick else 5

    def size(self, full: int) -> int:
        """Scale a number of messages, requests, tasks or entities."""
        return max(20, full // 50) if self.quick else full


class ChildError(RuntimeError):
    """A measuring process failed; the text ends with what it said."""


class Process:
    """A process with everything it says in a file."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], **pipes: Any) -> None:
        self.name = name
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed by join
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            **{"stdin": subprocess.DEVNULL, "stdout": self._output, "stderr": self._output} | pipes,
            cwd=ROOT,
            env={**os.environ, **environment},
        )

    def end(self) -> None:
        """Ask the process to end."""
        self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended, and end it if it does not."""
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def said(self) -> str:
        """Return the end of what it said."""
        self._output.seek(0)
        return self._output.read()[-3000:].decode(errors="replace").strip() or "(nothing)"


class Child(Process):
    """A process that runs commands, one at a time: see `benchmarks.child`."""

    def __init__(self, role: str, *arguments: str, environment: Mapping[str, str]) -> None:
        super().__init__(
            " ".join((role, *arguments)),
            ["benchmarks.child", role, *arguments],
            environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._results = self._process.stdin, self._process.stdout
        self._buffer = b""

    def call(self, command: str, timeout: float = 120.0, **arguments: Any) -> Any:
        """Run a command and return its result; ChildError when it fails or takes over timeout seconds."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(json.dumps([command, arguments]).encode() + b"\n")
            self._commands.flush()
        line = self._read_line(time.monotonic() + timeout)
        if line is None:
            raise ChildError(f"{self.name}: no result within {timeout} s; it said:\n{self.said()}")
        kind, value = json.loads(line)
        if kind == "error":
            raise ChildError(f"{self.name}: {value}")
        return value

    def end(self) -> None:
        """Say that there are no more commands."""
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()

    def join(self) -> None:
        """Wait until it has ended."""
        super().join()
        self._results.close()

    def _read_line(self, deadline: float) -> bytes | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(self._results.fileno(), 1 << 16)
                if not chunk:
                    raise ChildError(f"{self.name}: the process ended; it said:\n{self.said()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


class Crew:
    """The processes of one section: started one by one, ended together at the end of the block."""

    def __init__(self) -> None:
        self._workers: list[Process] = []
        self._children: list[Process] = []

    def child(self, role: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Start a measuring process."""
        child = Child(role, *arguments, environment=environment or {})
        self._children.append(child)
        return child

    def celery_worker(
        self, app: str, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a `celery worker` with one prefork child; it works when it answers."""
        command = [*("celery", "-A", app, "worker", "-n", f"{name}@%h"), *("-P", "prefork", "-c", "1")]
        command += ["--loglevel", "WARNING", *arguments]
        self._workers.append(Process(f"worker {name}", command, environment or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ChildError):
            for worker in self._workers:
                error.add_note(f"{worker.name} said: {worker.said()}")
        # The workers last, as their clients may still talk to them.
        for group in (self._children, self._workers):
            for process in group:
                process.end()
            for process in group:
                process.join()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Call condition until it is true; ChildError after 20 s."""
    deadline = time.monotonic() + _PROBE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ChildError(f"{what}: not within {_PROBE_SECONDS} s")
        time.sleep(0.02)


def interleave(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Give every name once a round, each round beginning with another one."""
    names = list(names)
    for number in range(rounds):
        first = number % len(names)
        yield from names[first:] + names[:first]


def times_as_good(ours: list[float], theirs: list[float], *, lower_is_better: bool = False) -> float:
    """Return the median over the rounds of how many times as good ours is."""
    pairs = zip(theirs, ours, strict=True) if lower_is_better else zip(ours, theirs, strict=True)
    return median(one / other for one, other in pairs)
