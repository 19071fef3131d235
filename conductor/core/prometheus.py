"""Counting with prometheus_client, in one process or in all processes of a node."""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from conductor.core.channels import ChannelKind
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.metrics import REFUSED, Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

#: Upper limits of the buckets, in seconds; a task may take an hour.
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TASK_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

OUTCOMES = ("completed", "failed", "cancelled")
REQUEST_OUTCOMES = ("answered", "error", "timeout", "failed", "cancelled")
DROPPED = ("buffer_full", "invalid")


class PrometheusMetrics(Metrics):
    """Counts in `registry`, once in a process; with `metrics_in` in files, which outlive the process.

    For a program of yours: `Conductor(metrics=PrometheusMetrics(prometheus_client.REGISTRY))`.
    """

    enabled = True

    def __init__(self, registry: CollectorRegistry | None) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"conductor_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"conductor_{name}", text, labels, buckets=buckets, registry=registry)

        self._published = counter("messages_published", "Messages given to a bus to publish.", "channel")
        self._delivered = counter("messages_delivered", "Messages that callbacks were given.", "channel")
        self._dropped = counter("messages_dropped", "Messages that a bus lost.", "reason")
        self._expired = counter("messages_expired", "Messages dropped because their time was over.")
        self._refused = counter("messages_refused", "Messages that were not let in or out.", "reason")
        self._requests = histogram(
            "request_duration_seconds", "Requests and how long they took.", REQUEST_BUCKETS, "outcome"
        )
        self._tasks = counter("tasks", "Tasks that ended on nodes.", "agent_type", "outcome")
        self._durations = histogram(
            "task_duration_seconds", "How long agents worked on tasks.", TASK_BUCKETS, "agent_type"
        )
        self._waits = histogram(
            "task_queue_seconds", "How long tasks waited in a queue.", TASK_BUCKETS, "agent_type"
        )
        self._retries = counter("task_retries", "Tasks that are tried again.", "agent_type", "code")
        self._letters = counter("dead_letters", "Messages that became dead letters.", "reason")
        self._begin_at_zero()

    def messages_published(self, kind: ChannelKind, count: int = 1) -> None:
        """See `Metrics`, as for the next."""
        self._published.labels(kind.value).inc(count)

    def messages_delivered(self, kind: ChannelKind, count: int = 1) -> None:
        self._delivered.labels(kind.value).inc(count)

    def messages_expired(self, count: int = 1) -> None:
        self._expired.inc(count)

    def messages_dropped(self, reason: str, count: int = 1) -> None:
        self._dropped.labels(reason).inc(count)

    def message_refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def request_ended(self, outcome: str, seconds: float) -> None:
        self._requests.labels(outcome).observe(seconds)

    def agents_expected(self, agent_types: Iterable[str], codes: Iterable[str]) -> None:
        codes = list(codes)
        for agent_type in agent_types:
            self._durations.labels(agent_type)
            self._waits.labels(agent_type)
            for outcome in OUTCOMES:
                self._tasks.labels(agent_type, outcome)
            for code in codes:
                self._retries.labels(agent_type, code)

    def task_waited(self, agent_type: str, seconds: float) -> None:
        # The clocks of two machines may differ.
        self._waits.labels(agent_type).observe(max(seconds, 0.0))

    def task_ran(self, agent_type: str, seconds: float) -> None:
        self._durations.labels(agent_type).observe(seconds)

    def task_ended(self, agent_type: str, outcome: str) -> None:
        self._tasks.labels(agent_type, outcome).inc()

    def task_retried(self, agent_type: str, code: str) -> None:
        self._retries.labels(agent_type, code).inc()

    def dead_letter(self, reason: str) -> None:
        self._letters.labels(reason).inc()

    def _begin_at_zero(self) -> None:
        """Have all series from the start: the first step of one that appears with it is no increase."""
        for kind in ChannelKind:
            self._published.labels(kind.value)
            self._delivered.labels(kind.value)
        for reason in DROPPED:
            self._dropped.labels(reason)
        for reason in REFUSED:
            self._refused.labels(reason)
        for outcome in REQUEST_OUTCOMES:
            self._requests.labels(outcome)
        for letter_reason in DeadLetterReason:
            self._letters.labels(letter_reason.value)


class BuildInfo(Collector):
    """Which version runs."""

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        version = metadata.version("conductorai")
        yield InfoMetricFamily("conductor_build", "The version of Conductor.", {"version": version})


def metrics_in(directory: Path) -> PrometheusMetrics:
    """Have this process, and those it forks, count in files of `directory`; once in a process.

    Metrics that an agent's own code makes with prometheus_client from now on are in these files as well.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    # prometheus_client 0.25 looks at the variable once, when it is imported, which may have been.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
    return PrometheusMetrics(registry=None)


def registry_of(directory: Path) -> CollectorRegistry:
    """Give what all processes have counted in `directory`, also those that have ended."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    registry.register(BuildInfo())
    return registry
