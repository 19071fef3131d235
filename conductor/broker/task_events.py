"""What nodes say of their tasks as they begin and end, through Celery's events."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conductor.core.urls import mask_url

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

#: Seconds that figures look back, and between two attempts to connect.
WINDOW, PAUSE = 60.0, 1.0
#: Events that are remembered at most.
REMEMBERED = 100_000

_KINDS = {
    "task-started": "started",
    "task-succeeded": "completed",
    "task-failed": "failed",
    "task-rejected": "failed",
    "task-retried": "retried",
    "task-revoked": "cancelled",
}
_ENDS = ("completed", "failed", "retried", "cancelled")


@dataclass(slots=True)
class Figures:
    """Rates in tasks a second, latencies in seconds; None where nothing happened."""

    rates: dict[str, float]
    waited: dict[str, float | None]
    ran: dict[str, float | None]


@dataclass(slots=True)
class _Seen:
    happened: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    waited: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    ran: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class TaskEvents:
    """Listens with a thread and a connection of its own, which is made again when it is lost."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._seen = _Seen()
        self._started: dict[str, float] = {}
        self._loads: dict[str, float] = {}
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._receiver: Any = None
        self._since = time.monotonic()
        self.error: str | None = "not connected yet"
        """Why nothing is heard at the moment; None while it listens."""
        self._thread = threading.Thread(target=self._serve, name="conductor-task-events", daemon=True)

    def start(self) -> None:
        """Begin to listen; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; blocks for about a second at most."""
        self._ends.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        self._thread.join(5)

    def figures(self, window: float = WINDOW) -> Figures:
        """Sum up the last `window` seconds, or those since it listens; may be called from any thread."""
        now = time.monotonic()
        begin = now - window
        seconds = max(min(window, now - self._since), 0.001)
        with self._lock:
            for kept in (self._seen.happened, self._seen.waited, self._seen.ran):
                while kept and kept[0][0] < now - WINDOW:
                    kept.popleft()
            kinds = [kind for at, kind in self._seen.happened if at >= begin]
            waited = sorted(value for at, value in self._seen.waited if at >= begin)
            ran = sorted(value for at, value in self._seen.ran if at >= begin)
        rates = {kind: kinds.count(kind) / seconds for kind in ("started", *_ENDS)}
        return Figures(rates, _percentiles(waited), _percentiles(ran))

    def load_of(self, agent_id: str) -> float | None:
        """Give the load average of the machine of an agent's node over a minute, as it said last."""
        return self._loads.get(agent_id)

    def _serve(self) -> None:
        while not self._ends.is_set():
            try:
                self._listen()
            except Exception as error:
                self.error = mask_url(str(error)) or type(error).__name__
                logger.debug("events of tasks are not heard", exc_info=True)
            self._started.clear()
            self._ends.wait(PAUSE)

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._note})
            receiver.on_consume_ready = self._ready
            self._receiver = receiver
            receiver.should_stop = self._ends.is_set()
            for _ in receiver.consume(limit=None, wakeup=False):
                pass

    def _ready(self, *_: Any, **__: Any) -> None:
        self.error = None

    def _note(self, event: dict[str, Any]) -> None:
        now, kind, task = time.monotonic(), str(event.get("type")), str(event.get("uuid"))
        if kind == "worker-heartbeat":
            load = event.get("loadavg") or [0.0]
            self._loads[str(event.get("hostname")).partition("@")[0]] = float(load[0])
            return
        what = _KINDS.get(kind)
        if what is None:
            return
        at = float(event.get("timestamp") or 0.0)
        with self._lock:
            self._seen.happened.append((now, what))
            if what == "started":
                self._started[task] = at
                if isinstance(waited := event.get("waited"), (int, float)):
                    self._seen.waited.append((now, float(waited)))
            elif (began := self._started.pop(task, None)) is not None:
                self._seen.ran.append((now, max(at - began, 0.0)))


def _percentiles(values: list[float]) -> dict[str, float | None]:
    return {name: _percentile(values, share) for name, share in (("p50", 0.5), ("p95", 0.95))}


def _percentile(values: list[float], share: float) -> float | None:
    return values[min(int(share * len(values)), len(values) - 1)] if values else None
