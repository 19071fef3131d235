"""The event loop of a node's child process, and how its main thread runs coroutines there."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import Future
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import FrameType

T = TypeVar("T")

#: What the parent sends when a task has reached its soft time limit (billiard's choice) or was cancelled.
SOFT_LIMIT_SIGNAL = signal.SIGUSR1
CANCEL_SIGNAL = signal.SIGUSR2


class Reason(StrEnum):
    """Why a coroutine was interrupted."""

    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    ITSELF = "cancelled itself"


class Interrupted(Exception):  # noqa: N818 - not an error of the coroutine
    """The coroutine was cancelled from outside, and has ended."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class LoopThread:
    """An event loop in a thread of its own; `run` and the signals belong to the main thread.

    The signals do not raise: they cancel the coroutine and the main thread goes on waiting for its end, so
    nothing is torn apart in the middle of storing a result. Code that blocks the loop does not end by that;
    the hard time limit of the parent process is for those.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="conductor-agents", daemon=True)
        self._task: asyncio.Task[Any] | None = None
        self._reason: Reason | None = None
        self._handling = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop itself."""
        return self._loop

    @property
    def busy(self) -> bool:
        """Whether a coroutine that `run` was given has not ended."""
        return self._task is not None

    @property
    def reason(self) -> Reason | None:
        """Why the coroutine that runs now was interrupted, if it was."""
        return self._reason

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the loop and the thread; gives up after `timeout` seconds when the loop is blocked."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run `coroutine` in the loop and give its result; no signal interrupts it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` in the loop and give its result; raises Interrupted if a signal ended it."""
        self._handle_signals()
        ended: Future[T] = Future()
        self._reason = None
        self._loop.call_soon_threadsafe(self._begin, coroutine, ended)
        return ended.result()

    def _handle_signals(self) -> None:
        # Not at the start of the process: billiard 4.3 installs its own handlers after the initialisers.
        if not self._handling:
            self._handling = True
            signal.signal(SOFT_LIMIT_SIGNAL, self._on_signal)
            signal.signal(CANCEL_SIGNAL, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        reason = Reason.TIMED_OUT if number == SOFT_LIMIT_SIGNAL else Reason.CANCELLED
        self._loop.call_soon_threadsafe(self._interrupt, reason)

    def _interrupt(self, reason: Reason) -> None:
        if self._task is not None and self._reason is None:
            self._reason = reason
            self._task.cancel()

    def _begin(self, coroutine: Coroutine[Any, Any, T], ended: Future[T]) -> None:
        task = self._loop.create_task(coroutine)
        self._task = task
        task.add_done_callback(lambda done: self._end(done, ended))

    def _end(self, task: asyncio.Task[T], ended: Future[T]) -> None:
        self._task = None
        if task.cancelled():
            ended.set_exception(Interrupted(self._reason or Reason.ITSELF))
        elif (raised := task.exception()) is not None:
            ended.set_exception(Interrupted(self._reason) if self._reason else raised)
        else:
            ended.set_result(task.result())

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
