"""What goes on at the moment, as far as the servers can be reached."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conductor.broker import topology
from conductor.broker.liveness import heartbeat_age, heartbeat_limit, is_over, lives
from conductor.broker.queue_depths import QueueDepth, read_queue_depths
from conductor.broker.shared_breaker import breaker_of
from conductor.broker.task_list import task_records
from conductor.core.enums import AgentType
from conductor.core.exceptions import ConductorError
from conductor.core.urls import mask_url
from conductor.orchestration.circuit_breaker import CircuitBreakerState
from conductor.store.redis_state import RedisStateManager

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from conductor.broker.addresses import Addresses
    from conductor.core.config import ConductorConfig
    from conductor.core.state import AgentState


@dataclass(frozen=True, slots=True)
class Server:
    """The broker, or the Redis of state and results."""

    url: str
    """Without its password."""
    error: str | None = None
    """Why it could not be asked; None where it answered."""
    seconds: float | None = None
    """How long its answer took."""


@dataclass(slots=True)
class Overview:
    """What was found; what a server that is away would know is missing."""

    broker: Server
    store: Server
    heartbeat_limit: float
    agents: list[AgentState] = field(default_factory=list)
    queues: list[QueueDepth] = field(default_factory=list)
    breakers: dict[AgentType, CircuitBreakerState] = field(default_factory=dict)
    """Those that are not closed."""
    held: dict[str, str] = field(default_factory=dict)
    """Tasks that have not ended and are with agents that are silent, each with the queue it came from."""

    @property
    def dead_letters(self) -> int | None:
        """How many there are; None where the broker is away."""
        if self.broker.error is not None:
            return None
        return next((queue.ready for queue in self.queues if queue.name == topology.DEAD_LETTERS), 0)

    def lives(self, agent: AgentState) -> bool:
        """Tell whether an agent gave a heartbeat lately."""
        return lives(agent, self.heartbeat_limit)

    def problems(self) -> list[str]:
        """Say what somebody has to do something about now."""
        found = [
            f"the {name} at {server.url} cannot be reached: {server.error}"
            for name, server in (("broker", self.broker), ("state store", self.store))
            if server.error is not None
        ]
        found += [
            f"the circuit breaker of {kind.value} is open: its tasks become dead letters"
            for kind, state in self.breakers.items()
            if state is CircuitBreakerState.OPEN
        ]
        if self.store.error is None:
            found += [text for queue in self.queues if (text := self._forsaken(queue))]
            found += [text for agent in self.agents if (text := self._stuck(agent))]
        return found

    def warnings(self) -> list[str]:
        """Say what is worth a look."""
        found = []
        if self.store.error is None and not any(map(self.lives, self.agents)):
            found.append("no agent is running")
        for agent in self.agents:
            age = heartbeat_age(agent)
            if not (self.lives(agent) or is_over(agent)):
                since = "none" if age is None else f"the last one {age:.0f} s ago"
                found.append(f"agent {agent.agent_id} is {agent.status.value} without heartbeats: {since}")
        if self.dead_letters:
            letters = "1 dead letter" if self.dead_letters == 1 else f"{self.dead_letters} dead letters"
            found.append(f"{letters}: see 'conductor dlq list'")
        return found

    def _forsaken(self, queue: QueueDepth) -> str | None:
        if not queue.ready or (queue.agent_id is None and queue.agent_type is None):
            return None
        served = self._served(queue)
        if served and queue.consumers != 0:
            return None
        tasks = "1 task waits" if queue.ready == 1 else f"{queue.ready} tasks wait"
        if served:
            return f"{tasks} in {queue.name}, which no node consumes, though agents live"
        return f"{tasks} in {queue.name}, and no agent that is running takes them"

    def _stuck(self, agent: AgentState) -> str | None:
        task_id = agent.current_task_id
        if self.lives(agent) or task_id not in self.held or self._served(QueueDepth(self.held[task_id], 0)):
            return None
        who = f"agent {agent.agent_id}, which is silent"
        return f"task {task_id} is with {who}, and no agent that is running takes it over"

    def _served(self, queue: QueueDepth) -> bool:
        takers = {queue.agent_id, queue.agent_type}
        return any(self.lives(agent) and {agent.agent_id, agent.agent_type} & takers for agent in self.agents)


async def look_around(config: ConductorConfig, addresses: Addresses) -> Overview:
    """Ask both servers, each for twice `bus.connect_timeout` seconds at most; raises nothing of theirs."""
    overview = Overview(
        Server(mask_url(addresses.broker_url)), Server(mask_url(addresses.redis_url)), heartbeat_limit(config)
    )
    overview.store = await _asked(addresses.redis_url, config, _read_store(config, addresses, overview))
    ids = [agent.agent_id for agent in overview.agents]
    limit = config.bus.connect_timeout
    reading = asyncio.to_thread(read_queue_depths, addresses.broker_url, ids, limit)
    overview.broker = await _asked(addresses.broker_url, config, _keep(reading, overview))
    return overview


async def _keep(reading: Awaitable[list[QueueDepth]], overview: Overview) -> None:
    overview.queues = await reading


async def _read_store(config: ConductorConfig, addresses: Addresses, overview: Overview) -> None:
    limit = config.bus.connect_timeout
    state = RedisStateManager(
        addresses.redis_url,
        config.redis.key_prefix,
        connect_timeout=limit,
        reply_timeout=limit,
        retry_seconds=0.1,
    )
    async with state:
        overview.agents = sorted(await state.list_agent_states(), key=lambda agent: agent.agent_id)
        silent = [agent for agent in overview.agents if not (overview.lives(agent) or is_over(agent))]
        tasks = [agent.current_task_id for agent in silent if agent.current_task_id]
        records = await task_records(state.link, tasks)
        overview.held = {task.task_id: task.queue for task in records if task and task.status is not None}
        breakers = {kind: breaker_of(state.link, kind, config) for kind in AgentType}
        states = await asyncio.gather(*(breaker.state() for breaker in breakers.values()))
        found = zip(breakers, states, strict=True)
        overview.breakers = {kind: word for kind, word in found if word is not CircuitBreakerState.CLOSED}


async def _asked(url: str, config: ConductorConfig, asking: Awaitable[Any]) -> Server:
    began = time.monotonic()
    limit = 2 * config.bus.connect_timeout
    try:
        async with asyncio.timeout(limit):
            await asking
    except TimeoutError:
        return Server(mask_url(url), f"no answer within {limit:g} s")
    except ConductorError as error:
        return Server(mask_url(url), error.message)
    return Server(mask_url(url), None, time.monotonic() - began)
