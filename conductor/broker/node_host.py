"""The agents of a node, in its child process: one event loop, their bus and their state."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from conductor.broker.dead_letter_sender import DeadLetterSender
from conductor.broker.kombu_bus import configured_bus
from conductor.broker.node_assignment import AssignmentWork
from conductor.broker.node_errors import ErrorDesk
from conductor.broker.node_events import EventDesk
from conductor.broker.node_runner import Interrupted, LoopThread
from conductor.broker.node_states import AgentStates
from conductor.broker.node_work import MessageWork, Office, Outcome, TaskWork, Work
from conductor.broker.records import TaskRecords
from conductor.broker.results import UNKNOWN_AGENT, assigned_task_id, error_response, result_without_agent
from conductor.broker.shared_breaker import breaker_of
from conductor.broker.signing import configured_signer
from conductor.broker.task_letters import Fate
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.enums import AgentStatus, TaskStatus
from conductor.core.exceptions import ConductorError
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.store.redis_state import RedisStateManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conductor.agents.base import BaseAgent
    from conductor.broker.addresses import Addresses
    from conductor.broker.node_spec import NodeSpec
    from conductor.broker.records import Run
    from conductor.core.config import ConductorConfig
    from conductor.core.messages import AgentMessage
    from conductor.core.models import TaskDefinition

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds to connect and start the agents; Celery replaces a child that takes longer than its own limit.
START_LIMIT = 50.0
#: Seconds that agents have to stop.
STOP_LIMIT = 10.0
#: Seconds that the end of a task waits for a Redis that is away.
RETRY_SECONDS = 30.0


class AgentHost:
    """Hosts agents; its public methods belong to the main thread, the others to the event loop's."""

    def __init__(
        self,
        config: ConductorConfig,
        addresses: Addresses,
        spec: NodeSpec,
        node_name: str,
        parent: int,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._config = config
        self._spec = spec
        self._node_name = node_name
        self._parent = parent
        self._runner = LoopThread()
        self._manager = RedisStateManager(
            addresses.redis_url,
            key_prefix=config.redis.key_prefix,
            expires_seconds=config.redis.expires_seconds,
            retry_seconds=RETRY_SECONDS,
        )
        self._bus = configured_bus(config, addresses, metrics)
        self._states = AgentStates(self._manager, config.node.heartbeat_interval)
        self._events = EventDesk(self._bus, self._after_event)
        self._agents: dict[str, BaseAgent] = {}
        self._letters = DeadLetterSender(
            addresses.broker_url,
            config.bus.connect_timeout,
            RETRY_SECONDS,
            metrics,
            configured_signer(config),
        )
        records = TaskRecords(self._manager.link, config.redis.result_expires_seconds)
        self._office = Office(
            records=records,
            manager=self._manager,
            states=self._states,
            events=self._events,
            errors=ErrorDesk(records, self._manager, self._letters, config.errors, self._bus, metrics),
            breaker=cache(lambda agent_type: breaker_of(self._manager.link, agent_type, config)),
            interruption=lambda: self._runner.reason,
            metrics=metrics,
        )

    def start(self) -> None:
        """Connect and start the agents; what fails ends the node, for a new child would fail as well."""
        self._runner.start()
        try:
            self._runner.call(self._start(), START_LIMIT)
        except Exception as error:
            text = error.message if isinstance(error, ConductorError) else f"{type(error).__name__}: {error}"
            logger.critical("Node %s cannot start its agents: %s", self._node_name, text, exc_info=True)
            os.kill(self._parent, signal.SIGTERM)
            raise

    def stop(self) -> None:
        """Stop the agents, file their state and disconnect.

        A process that ends in the middle of a task leaves all of it to the one that takes its place.
        """
        if self._runner.busy:
            return
        try:
            self._runner.call(self._stop(), STOP_LIMIT)
        except Exception:
            logger.exception("Node %s did not stop its agents in good order", self._node_name)
        self._runner.stop(1.0)

    def execute(self, run: Run, task: TaskDefinition) -> Outcome:
        """Have an agent do a task; its end is filed, whatever the agent does."""
        hosted = self._spec.agent_for(run.queue, task.assigned_to)
        return self._do(TaskWork(self._office, self._agents[hosted.agent_id], run, task))

    def answer(
        self, run: Run, agent_id: str, message: AgentMessage, reply_to: str | None, seconds: float
    ) -> Outcome:
        """Have an agent answer a message within so many seconds; its end is filed, whatever it does."""
        if agent_id not in self._agents:
            return self._runner.call(self._unknown_agent(run, agent_id, message, reply_to))
        return self._do(MessageWork(self._office, self._agents[agent_id], run, message, reply_to, seconds))

    def carry_out(self, run: Run, agent_id: str, message: AgentMessage, task: TaskDefinition) -> Outcome:
        """Have an agent do the task in a message that nobody waits for the answer to; as `execute`."""
        if agent_id not in self._agents:
            return self._runner.call(self._unknown_agent(run, agent_id, message, None))
        return self._do(AssignmentWork(self._office, self._agents[agent_id], run, message, task))

    def refuse(self, run: Run, reason: str, task_id: str = "") -> Outcome:
        """File the end of what is no valid task or message; `task_id` where it is not the run's."""
        reasons = DeadLetterReason.UNDECODABLE, "INVALID_TASK", reason
        return self._runner.call(self._bury(run, task_id, "", *reasons))

    async def _unknown_agent(
        self, run: Run, agent_id: str, message: AgentMessage, reply_to: str | None
    ) -> Outcome:
        code, text = "AGENT_NOT_FOUND", f"Node {self._node_name} hosts no agent {agent_id!r}."
        reasons = DeadLetterReason.UNKNOWN_AGENT, code, text
        outcome = await self._bury(run, assigned_task_id(message), agent_id, *reasons)
        await self._events.reply(error_response(message, agent_id or UNKNOWN_AGENT, code, text), reply_to)
        return outcome

    async def _bury(
        self, run: Run, task_id: str | None, agent_id: str, reason: DeadLetterReason, code: str, text: str
    ) -> Outcome:
        result = result_without_agent(
            task_id or run.task_id, agent_id or UNKNOWN_AGENT, TaskStatus.FAILED, text, code
        )
        return await self._office.errors.bury(run, None, result, Fate(reason))

    def _do(self, work: Work) -> Outcome:
        try:
            return self._runner.run(work.perform())
        except Interrupted as interruption:
            return self._runner.call(work.interrupted(interruption.reason))

    async def _start(self) -> None:
        for connect in (self._manager.connect, self._bus.connect):
            await _when_reachable(connect)
        for hosted in self._spec.agents:
            agent = hosted.factory(hosted.agent_id, self._config)
            agent.attach(self._bus, self._manager)
            await self._states.take_over(agent, node=self._node_name, pid=self._parent)
            await agent.start()
            await self._events.attend(agent)
            self._agents[agent.agent_id] = agent
            await self._states.create(agent)

    async def _stop(self) -> None:
        for agent in self._agents.values():
            try:
                await agent.stop()
            except Exception:
                logger.exception("Agent %s failed while stopping", agent.agent_id)
            await self._states.save(agent)
        await asyncio.to_thread(self._letters.close)
        await self._bus.disconnect()
        await self._manager.disconnect()

    async def _after_event(self, agent: BaseAgent) -> None:
        """Save what a message changed; a node whose agents were all told to stop ends."""
        await self._states.save(agent)
        if all(each.status is AgentStatus.CANCELLED for each in self._agents.values()):
            logger.info("Node %s ends: its agents were told to stop", self._node_name)
            os.kill(self._parent, signal.SIGTERM)


async def _when_reachable(connect: Callable[[], Awaitable[T]]) -> T:
    """Connect, trying again while the server is away; the limit on starting ends it."""
    pause = 0.2
    while True:
        try:
            return await connect()
        except (ConductorError, OSError) as error:
            logger.warning("Trying again in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 3.0)
