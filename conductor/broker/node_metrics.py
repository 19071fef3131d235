"""What a node counts, in all its processes, and where it shows that."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from conductor.core.exceptions import ConfigurationError
from conductor.core.metrics import NO_METRICS, Metrics

if TYPE_CHECKING:
    from conductor.broker.node_spec import NodeSpec
    from conductor.core.config import ConductorConfig
    from conductor.core.metrics_endpoint import MetricsEndpoint

logger = logging.getLogger(__name__)


class NodeMetrics:
    """The numbers of a node, in files of a directory, so that they outlive each of its children.

    Made in the parent process, before the agents are imported. It is off where `metrics.port` and
    `metrics.directory` are not set.
    """

    def __init__(self, config: ConductorConfig) -> None:
        self.metrics: Metrics = NO_METRICS
        self._config = config.metrics
        self._codes = config.errors.retry.retryable_errors
        self._pid = os.getpid()
        self._endpoint: MetricsEndpoint | None = None
        self._own: Path | None = None
        if not self._config.enabled:
            return
        from conductor.core.prometheus import metrics_in

        if self._config.directory is None:
            self._own = Path(tempfile.mkdtemp(prefix="conductor-metrics-"))
            atexit.register(self._remove)
        self._directory = self._config.directory or self._own
        assert self._directory is not None
        self.metrics = metrics_in(self._directory)

    def expect(self, spec: NodeSpec) -> None:
        """Begin at 0 what there will be to count."""
        self.metrics.agents_expected({agent.agent_type.value for agent in spec.agents}, sorted(self._codes))

    def serve(self, node: str) -> None:
        """Show the numbers, where a port is set; that it cannot be had is logged, and no reason to end."""
        if self._config.port is None or self._directory is None:
            return
        from conductor.core.metrics_endpoint import MetricsEndpoint
        from conductor.core.prometheus import registry_of

        endpoint = MetricsEndpoint(registry_of(self._directory), self._config.host, self._config.port)
        try:
            logger.warning("Metrics of node %s are at %s", node, endpoint.start())
        except ConfigurationError as error:
            logger.error("Node %s works without its metrics being served: %s", node, error.message)
        else:
            self._endpoint = endpoint

    def forget(self) -> None:
        """Let go of the port; for a child, which has it from its parent and would keep it after its end."""
        if self._endpoint is not None:
            self._endpoint.forget()

    def _remove(self) -> None:
        if self._own is not None and os.getpid() == self._pid:
            shutil.rmtree(self._own, ignore_errors=True)


class ShowMetrics(bootsteps.StartStopStep):  # type: ignore[misc]
    """Serves the numbers for as long as the node lives."""

    requires = ("celery.worker.components:Pool",)

    def start(self, w: Any) -> None:
        """Begin."""
        w.metrics.serve(w.hostname)
