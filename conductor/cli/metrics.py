"""What Prometheus gets of `conductor up`, and from `conductor metrics`."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conductor.broker.addresses import Addresses, find_addresses
from conductor.cli.output import Output
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConfigurationError
from conductor.core.metrics import NO_METRICS, Metrics

DEFAULT_PORT = 9464


def with_port(config: ConductorConfig, port: int | None) -> ConductorConfig:
    """Give the configuration with another port for metrics, if there is one."""
    if port is None:
        return config
    return config.model_copy(update={"metrics": config.metrics.model_copy(update={"port": port})})


@contextlib.contextmanager
def counting(config: ConductorConfig) -> Iterator[tuple[ConductorConfig, Metrics]]:
    """Have this process and its nodes count in one place, where metrics are wanted.

    Gives the configuration that says so to nodes, and what takes the numbers of this process.
    """
    if config.metrics.port is None:
        yield config, NO_METRICS
        return
    from conductor.core.prometheus import metrics_in

    with tempfile.TemporaryDirectory(prefix="conductor-metrics-", ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        metrics = config.metrics.model_copy(update={"directory": place})
        yield config.model_copy(update={"metrics": metrics}), metrics_in(place)


@contextlib.contextmanager
def showing(config: ConductorConfig, addresses: Addresses, output: Output) -> Iterator[str | None]:
    """Serve what was counted, and what all nodes together are like; gives the URL.

    A port that cannot be had is said, and keeps nobody from his work.
    """
    if config.metrics.port is None or config.metrics.directory is None:
        yield None
        return
    from conductor.broker.cluster_metrics import ClusterCollector
    from conductor.core.metrics_endpoint import MetricsEndpoint
    from conductor.core.prometheus import registry_of

    registry = registry_of(config.metrics.directory)
    registry.register(ClusterCollector(config, addresses))
    endpoint = MetricsEndpoint(registry, config.metrics.host, config.metrics.port)
    url = None
    try:
        url = endpoint.start()
    except ConfigurationError as error:
        output.note(f"metrics are not served: {error.message}")
        output.emit({"event": "metrics_failed", "message": error.message})
    try:
        yield url
    finally:
        endpoint.stop()


async def export(config: ConductorConfig, output: Output) -> int:
    """Serve what all nodes together are like, until cancelled; ConfigurationError, code METRICS_PORT."""
    from prometheus_client import CollectorRegistry

    from conductor.broker.cluster_metrics import ClusterCollector
    from conductor.core.metrics_endpoint import MetricsEndpoint
    from conductor.core.prometheus import BuildInfo

    registry = CollectorRegistry()
    registry.register(BuildInfo())
    registry.register(ClusterCollector(config, find_addresses(config)))
    port = DEFAULT_PORT if config.metrics.port is None else config.metrics.port
    endpoint = MetricsEndpoint(registry, config.metrics.host, port)
    url = endpoint.start()
    output.say(f"metrics {url}")
    output.emit({"event": "ready", "metrics_url": url})
    try:
        await asyncio.Event().wait()
    finally:
        endpoint.stop()
    return 0
