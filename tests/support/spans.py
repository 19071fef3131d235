"""Spans of this process and of nodes, in one place."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Names the file to which nodes append their spans; not a setting of Conductor's.
FILE = "TEST_SPANS_FILE"
#: What a node's `tracing.exporter` is.
EXPORTER = "tests.support.spans:exporter"


@dataclass(frozen=True)
class FoundSpan:
    """A span that has ended, wherever it was."""

    name: str
    kind: str
    trace_id: int
    span_id: int
    parent_id: int | None
    status: str
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    pid: int = 0
    service: str = ""


def _found(span: ReadableSpan, pid: int) -> FoundSpan:
    context = span.get_span_context()
    assert context is not None
    return FoundSpan(
        span.name,
        span.kind.name.lower(),
        context.trace_id,
        context.span_id,
        span.parent.span_id if span.parent else None,
        span.status.status_code.name,
        dict(span.attributes or {}),
        [event.name for event in span.events],
        pid,
        str(span.resource.attributes.get("service.name")),
    )


class FileExporter(SpanExporter):
    """Appends spans to a file, in one write each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        with self._path.open("a") as file:
            for span in spans:
                file.write(json.dumps(vars(_found(span, os.getpid()))) + "\n")
                file.flush()
        return SpanExportResult.SUCCESS


def exporter(settings: object) -> SpanExporter:
    """Make the exporter of a node under test."""
    return FileExporter(Path(os.environ[FILE]))


@dataclass
class Spans:
    """What was recorded here, and by nodes."""

    here: InMemorySpanExporter
    file: Path

    def all(self) -> list[FoundSpan]:
        """Give all spans that have ended."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        there = [FoundSpan(**json.loads(line)) for line in lines]
        return [_found(span, os.getpid()) for span in self.here.get_finished_spans()] + there

    def of_trace(self, trace_id: int) -> list[FoundSpan]:
        """Give the spans of a trace."""
        return [span for span in self.all() if span.trace_id == trace_id]

    def of_task(self, task_id: str) -> list[FoundSpan]:
        """Give all spans of the trace in which a task was dispatched."""
        traces = {s.trace_id for s in self.all() if s.attributes.get("conductor.task.id") == task_id}
        assert len(traces) <= 1, f"the spans of one task are in {len(traces)} traces"
        return [span for trace_id in traces for span in self.of_trace(trace_id)]

    def traces_of(self, message_id: str) -> list[list[FoundSpan]]:
        """Give the spans of each trace with a message."""
        found = self.all()
        traces = {s.trace_id for s in found if s.attributes.get("messaging.message.id") == message_id}
        return [[span for span in found if span.trace_id == trace_id] for trace_id in traces]

    def of_message(self, message_id: str) -> list[FoundSpan]:
        """Give all spans of the one trace with a message."""
        traces = self.traces_of(message_id)
        assert len(traces) <= 1, f"the spans of one message are in {len(traces)} traces"
        return [span for trace in traces for span in trace]


@contextmanager
def recorded(file: Path) -> Iterator[Spans]:
    """Record the spans of this process, as a program that sets a TracerProvider; undone at the end."""
    before = trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = None, False
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    try:
        yield Spans(memory, file)
    finally:
        trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE._done = before
        provider.shutdown()


def tree(spans: list[FoundSpan]) -> list[str]:
    """Write spans as lines, each below and deeper than its parent, siblings by name."""
    known = {span.span_id for span in spans}

    def below(parent: int | None, depth: int) -> Iterator[str]:
        children = [s for s in spans if (s.parent_id if s.parent_id in known else None) == parent]
        for span in sorted(children, key=lambda s: s.name):
            yield f"{'  ' * depth}{span.name}"
            yield from below(span.span_id, depth + 1)

    return list(below(None, 0))
