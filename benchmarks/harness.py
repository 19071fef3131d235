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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
_PROBE_SECONDS = 20.0


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


class Child:
    """A process of its own that runs commands, one at a time: see `benchmarks.child`."""

    def __init__(self, role: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = " ".join((role, *arguments))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", role, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        self._buffer = b""

    def call(self, command: str, timeout: float = 120.0, **arguments: Any) -> Any:
        """Run a command and return its result; ChildError when it fails or takes over timeout seconds."""
        self.send(command, **arguments)
        return self.receive(timeout)

    def send(self, command: str, **arguments: Any) -> None:
        """Begin a command; `receive` has its result."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout: float = 120.0) -> Any:
        """Return the result of the command that was sent."""
        line = self._read_line(time.monotonic() + timeout)
        if line is None:
            raise ChildError(f"{self.name}: no result within {timeout} s; it said:\n{self._said()}")
        kind, value = json.loads(line)
        if kind == "error":
            raise ChildError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        """Let the process end, or end it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read_line(self, deadline: float) -> bytes | None:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise ChildError(f"{self.name}: the process ended; it said:\n{self._said()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:].decode(errors="replace").strip() or "(nothing)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def celery_worker(
    app: str, name: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A `celery worker` process with one prefork child; the caller waits until it works."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", app, "worker", "-n", f"{name}@%h", "-P", "prefork"),
                *("-c", "1", "--loglevel", "WARNING", *arguments),
            ],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield
        except BaseException as error:
            log.seek(0)
            error.add_note(f"worker {name} said: {log.read()[-3000:].decode(errors='replace')}")
            raise
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


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
