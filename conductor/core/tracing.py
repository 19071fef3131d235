"""Spans of OpenTelemetry around what is dispatched, published and done; nothing where nobody wants them.

Spans go to the TracerProvider of the process, which `configure_tracing` sets, or the program itself. Without
one OpenTelemetry is not even imported.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from conductor.core.enums import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

    from conductor.core.models import TaskDefinition, TaskResult

Kind = Literal["internal", "producer", "consumer", "client"]

#: The headers of W3C Trace Context.
HEADERS = ("traceparent", "tracestate")
_HEADER_LIMIT = 512
_NAME_LIMIT = 100

#: For `parent`: what runs here, instead of what a message says.
HERE: Any = object()


class Tracing:
    """Makes spans of one TracerProvider; may be used from every thread."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._no_context = Context()
        self._tracer = provider.get_tracer("conductor")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Any],
        parent: Mapping[str, Any] | None = HERE,
        *,
        start_time: int | None = None,
    ) -> Iterator[Span]:
        """Be in a span, which ends with the block; `parent` are the headers of a message, None: no parent.

        Attributes that are None are left out. A span whose block raises is an ERROR with the type or code of
        what was raised, and without its text, which may be anybody's data.
        """
        span = self._tracer.start_span(
            name[:_NAME_LIMIT],
            self._no_context if parent is None else None if parent is HERE else self._extract(parent),
            getattr(self._trace.SpanKind, kind.upper()),
            {key: value for key, value in attributes.items() if value is not None},
            start_time=start_time,
        )
        with self._trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                yield span
            except BaseException as error:
                self.fail(span, code_of(error))
                raise

    @contextmanager
    def below(self, headers: Mapping[str, Any]) -> Iterator[None]:
        """Have the span that a message's headers name be the current one, as far as that goes from here."""
        from opentelemetry import context

        token = context.attach(self._extract(headers))
        try:
            yield
        finally:
            context.detach(token)

    def fail(self, span: Span, code: str) -> None:
        """Make a span an ERROR."""
        span.set_attribute("error.type", code)
        span.set_status(self._trace.StatusCode.ERROR, code)

    def headers(self) -> dict[str, str]:
        """Give the headers with which a message says that it belongs to the current span."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers)
        return headers

    def _extract(self, headers: Mapping[str, Any]) -> Context:
        return self._propagator.extract(trace_headers(headers), self._no_context)


def find_tracing() -> Tracing | None:
    """Give what makes spans, None where this process has no TracerProvider."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return _tracing_of(provider)


def span_of(
    name: str, kind: Kind, attributes: Mapping[str, Any], parent: Mapping[str, Any] | None = HERE
) -> AbstractContextManager[Span | None]:
    """Be in a span as `Tracing.span` makes it, or in none where there is no tracing."""
    tracing = find_tracing()
    return nullcontext() if tracing is None else tracing.span(name, kind, attributes, parent)


def fail_span(span: Span | None, code: str) -> None:
    """Make a span that `span_of` gave an ERROR."""
    tracing = find_tracing()
    if span is not None and tracing is not None:
        tracing.fail(span, code)


def add_event(name: str, attributes: Mapping[str, Any]) -> None:
    """Note that something happened in the current span, if there is one."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        trace.get_current_span().add_event(name, dict(attributes))


def current_headers() -> dict[str, str]:
    """Give the headers for a message that belongs to the current span; none where there is no tracing."""
    tracing = find_tracing()
    return {} if tracing is None else tracing.headers()


def current_trace() -> dict[str, str]:
    """Give the ids of the current span, as log lines have them."""
    trace = sys.modules.get("opentelemetry.trace")
    found = trace and trace.get_current_span().get_span_context()
    if not found or not found.is_valid:
        return {}
    return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}


def trace_headers(headers: Mapping[str, Any] | None) -> dict[str, str]:
    """Take from a message's headers those of its trace; what is no text, or too long, is none."""
    found = {name: (headers or {}).get(name) for name in HEADERS}
    return {
        name: value for name, value in found.items() if isinstance(value, str) and len(value) <= _HEADER_LIMIT
    }


def task_attributes(task: TaskDefinition) -> dict[str, Any]:
    """Give what spans say of a task: ids, and nothing that it is given."""
    workflow_id = task.metadata.get("workflow_id")
    return {
        "conductor.task.id": task.task_id,
        "conductor.task.name": task.name[:_NAME_LIMIT],
        "conductor.agent.type": task.assigned_to.value if task.assigned_to else None,
        "conductor.workflow.id": workflow_id if isinstance(workflow_id, str) else None,
    }


def ended_in(span: Span | None, result: TaskResult) -> TaskResult:
    """Note in a span how a task ended."""
    if span is not None:
        span.set_attribute("conductor.task.status", result.status.value)
        span.set_attribute("conductor.agent.id", result.agent_id)
        if result.status is TaskStatus.FAILED:
            error = result.metadata.get("error")
            fail_span(span, str(error.get("error_code")) if isinstance(error, dict) else "TASK_FAILED")
    return result


def code_of(error: BaseException) -> str:
    """Give the word for an error: its code, or else its type."""
    code = getattr(error, "error_code", None)
    return code if isinstance(code, str) else type(error).__name__


@lru_cache(maxsize=1)
def _tracing_of(provider: TracerProvider) -> Tracing:
    return Tracing(provider)
