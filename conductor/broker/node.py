"""A Celery worker that hosts agents."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import click
from celery import signals
from celery.apps.worker import Worker
from celery.worker import state as worker_state

from conductor.broker import topology
from conductor.broker.node_desk import NodeDesk
from conductor.broker.node_host import AgentHost
from conductor.broker.node_logging import NodeLogging
from conductor.broker.node_metrics import NodeMetrics
from conductor.broker.node_spec import CELERY_DEFAULT_NAME, NodeSpec, plan_node
from conductor.broker.node_transport import node_transport_name
from conductor.core.exceptions import ConfigurationError
from conductor.core.tracing_setup import check_tracing, configure_tracing

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor.broker.app import ConductorApp

logger = logging.getLogger(__name__)

WRONG_POOL = "An agent node runs one prefork child: leave out --pool and --concurrency, and start more nodes."
WRONG_QUEUES = "An agent node consumes the queues of its agents: leave out --queues and --exclude-queues."


class NodeWorker(Worker):  # type: ignore[misc]
    """The parent process of a node, and in the forked child the way to the agents.

    What the user got wrong is a click.ClickException: `celery worker` prints its sentence and ends.
    """

    app: ConductorApp
    spec: NodeSpec
    host: AgentHost | None = None
    _flush_spans: Callable[[], Any] | None = None
    listening: bool
    """Whether the node hears requests to its agents."""

    def __init__(
        self,
        app: ConductorApp | None = None,
        hostname: str | None = None,
        agent: str | None = None,
        **options: Any,
    ) -> None:
        app = app or self.app
        _check_options(options)
        name, _, machine = (hostname or "").partition("@")
        try:
            self.addresses = app.addresses
            check_tracing(app.config.tracing)
            self.metrics = NodeMetrics(app.config)
            self.spec = plan_node(
                app.config, app.agents, agent, name if name != CELERY_DEFAULT_NAME else None
            )
        except ConfigurationError as error:
            raise click.ClickException(error.message) from error
        app.node = self
        app.conf.task_queues = _queues(self.spec)
        app.conf.broker_transport = node_transport_name(self.addresses.broker_url)
        signals.worker_process_init.connect(self._on_child_start, weak=False)
        signals.worker_process_shutdown.connect(self._on_child_end, weak=False)
        self.listening = False
        self.metrics.expect(self.spec)
        self.desk = NodeDesk(app, app.config, self.addresses, self.spec, self.metrics.metrics)
        options.update(without_gossip=True, without_mingle=True)
        hostname = f"{self.spec.name}@{machine or socket.gethostname()}"
        self.logging = NodeLogging(hostname, self.spec, app.config.log_format)
        self.logging.connect()
        super().__init__(app=app, hostname=hostname, **options)

    def emit_banner(self) -> None:
        """See `celery.apps.worker.Worker`."""
        agents = ", ".join(agent.agent_id for agent in self.spec.agents)
        self.logging.banner(f"Node {self.hostname} starts: {agents}", super().emit_banner)

    def take_ahead(self) -> None:
        """Fetch the next task for the node's own agents, if the broker can do that without waiting."""
        consumer = self.consumer.task_consumer
        take = getattr(consumer and consumer.channel, "take_ahead", None)
        if take is not None:
            try:
                take(len(worker_state.scheduled_requests))
            except self.consumer.connection_errors:
                logger.debug("the next task could not be fetched", exc_info=True)

    def _on_child_start(self, **_: Any) -> None:
        self.metrics.forget()
        self._flush_spans = configure_tracing(self.app.config.tracing, self.hostname)
        self.host = AgentHost(
            self.app.config, self.addresses, self.spec, self.hostname, os.getppid(), self.metrics.metrics
        )
        self.host.start()

    def _on_child_end(self, **_: Any) -> None:
        if self.host is not None:
            self.host.stop()
        if self._flush_spans is not None:
            self._flush_spans()


def _check_options(options: dict[str, Any]) -> None:
    pool = options.get("pool_cls") or options.get("pool") or "prefork"
    module = pool if isinstance(pool, str) else pool.__module__
    concurrency = options.get("concurrency") or 1
    if "prefork" not in module or str(concurrency) != "1" or options.get("autoscale"):
        raise click.UsageError(WRONG_POOL)
    if options.get("queues") or options.get("exclude_queues"):
        raise click.UsageError(WRONG_QUEUES)


def _queues(spec: NodeSpec) -> list[Any]:
    own = [topology.agent_queue(agent.agent_id) for agent in spec.agents]
    types = dict.fromkeys(agent.agent_type for agent in spec.agents)
    return own + [topology.type_queue(agent_type) for agent_type in types]
