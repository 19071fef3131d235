"""What all nodes together are like, looked at when Prometheus asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from conductor.broker.liveness import heartbeat_age, is_over
from conductor.broker.overview import Overview, look_around
from conductor.core.enums import AgentStatus, AgentType
from conductor.orchestration.circuit_breaker import CircuitBreakerState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from conductor.broker.addresses import Addresses
    from conductor.core.config import ConductorConfig

#: Seconds for one connection, of which four may be waited for; Prometheus waits ten by default.
PATIENCE = 2.0


class ClusterCollector(Collector):
    """Queues, breakers and agents; of a server that is away there is only that it is."""

    def __init__(self, config: ConductorConfig, addresses: Addresses) -> None:
        patience = min(config.bus.connect_timeout, PATIENCE)
        bus = config.bus.model_copy(update={"connect_timeout": patience})
        self._config = config.model_copy(update={"bus": bus})
        self._addresses = addresses

    def describe(self) -> list[Metric]:
        """Spare the servers being asked when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`; in a thread without an event loop."""
        overview = asyncio.run(look_around(self._config, self._addresses))
        yield _servers(overview)
        if overview.broker.error is None:
            yield from _queues(overview)
        if overview.store.error is None:
            yield _breakers(overview)
            yield from _agents(overview)


def _servers(overview: Overview) -> Metric:
    up = GaugeMetricFamily("conductor_up", "Whether a server answers.", labels=["component"])
    for component, server in (("broker", overview.broker), ("state", overview.store)):
        up.add_metric([component], float(server.error is None))
    return up


def _queues(overview: Overview) -> Iterator[Metric]:
    depth = GaugeMetricFamily("conductor_queue_depth", "Messages that wait in a queue.", labels=["queue"])
    for queue in overview.queues:
        depth.add_metric([queue.name], queue.ready)
    yield depth
    letters = overview.dead_letters or 0
    yield GaugeMetricFamily("conductor_dead_letters_waiting", "Dead letters in their queue.", letters)


def _breakers(overview: Overview) -> Metric:
    breakers = GaugeMetricFamily(
        "conductor_breaker_state", "1 for the state a breaker is in.", labels=["agent_type", "state"]
    )
    for kind in AgentType:
        now = overview.breakers.get(kind, CircuitBreakerState.CLOSED)
        for state in CircuitBreakerState:
            breakers.add_metric([kind.value, state.value], float(state is now))
    return breakers


def _agents(overview: Overview) -> Iterator[Metric]:
    ages = GaugeMetricFamily(
        "conductor_agent_heartbeat_age_seconds",
        "Since the last heartbeat of an agent that was not told to stop.",
        labels=["agent_id", "agent_type"],
    )
    agents = GaugeMetricFamily(
        "conductor_agents", "Agents that live, by what they do.", labels=["agent_type", "status"]
    )
    living = Counter((agent.agent_type, agent.status) for agent in overview.agents if overview.lives(agent))
    for agent in overview.agents:
        age = heartbeat_age(agent)
        if age is not None and not is_over(agent):
            ages.add_metric([agent.agent_id, agent.agent_type.value], max(age, 0.0))
    for kind in AgentType:
        for status in AgentStatus:
            agents.add_metric([kind.value, status.value], living[kind, status])
    yield ages
    yield agents
