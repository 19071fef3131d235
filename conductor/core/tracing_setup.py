"""Sending spans where the configuration says; the only place that imports OpenTelemetry's SDK."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from conductor.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor.core.config_sections import TracingConfig

#: Milliseconds that an ended span waits for others to be exported with, at most.
EXPORT_DELAY = 500
#: Milliseconds that the end of a process waits for an exporter.
FLUSH_LIMIT = 5000
_TRACES = "/v1/traces"


def check_tracing(config: TracingConfig) -> None:
    """Raise ConfigurationError, code TRACING, where what `tracing` names is not installed, or unknown."""
    if config.exporter == "none":
        return
    if not _is_installed("opentelemetry.sdk") or (
        config.exporter == "otlp" and not _is_installed("opentelemetry.exporter.otlp.proto.http")
    ):
        raise ConfigurationError(
            f"tracing.exporter is {config.exporter!r}, for which OpenTelemetry's SDK is missing: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
            "TRACING",
        )
    if ":" in config.exporter:
        _factory(config.exporter)


def configure_tracing(config: TracingConfig, instance: str | None = None) -> Callable[[], Any] | None:
    """Have this process export its spans; gives what waits until all were, for its end.

    Does nothing, and gives None, where tracing is off, or the program has set a TracerProvider: then the
    spans go there. Not to be called before a fork. Raises what `check_tracing` does.
    """
    check_tracing(config)
    if config.exporter == "none":
        return None
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    attributes = {"service.name": config.service_name}
    if instance is not None:
        attributes["service.instance.id"] = instance
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)), resource=Resource.create(attributes)
    )
    provider.add_span_processor(BatchSpanProcessor(_exporter(config), schedule_delay_millis=EXPORT_DELAY))
    trace.set_tracer_provider(provider)
    return lambda: provider.force_flush(FLUSH_LIMIT)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _exporter(config: TracingConfig) -> Any:
    if config.exporter == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(
            out=sys.__stderr__ or sys.stderr, formatter=lambda span: f"{span.to_json(indent=None)}\n"
        )
    if config.exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        endpoint = config.endpoint
        if endpoint is not None and not endpoint.rstrip("/").endswith(_TRACES):
            endpoint = endpoint.rstrip("/") + _TRACES
        return OTLPSpanExporter(endpoint=endpoint)
    try:
        return _factory(config.exporter)(config)
    except Exception as error:
        raise ConfigurationError(
            f"tracing.exporter: {config.exporter} made no exporter: {type(error).__name__}: {error}",
            "TRACING",
        ) from error


def _factory(path: str) -> Callable[[TracingConfig], Any]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"tracing.exporter {path!r} cannot be imported: {error}. It is 'none', 'otlp', 'console', or a "
            "function package.module:name that takes the settings of `tracing` and gives a SpanExporter",
            "TRACING",
        ) from error
    return found  # type: ignore[no-any-return]
