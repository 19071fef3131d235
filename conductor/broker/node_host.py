"""The agents of a node, in its child process: one event loop, their bus and their state."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any, TypeVar

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.node_events import EventDesk
from conductor.broker.node_runner import Interrupted, LoopThread, Reason
from conductor.broker.results import assigned_task_id, cancelled, refused, timed_out
from conductor.core.enums import AgentStatus, MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError, StateError
from conductor.core.messages import AgentMessage, TaskResultPayload
from conductor.store.redis_state import RedisStateManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conductor.agents.base import BaseAgent
    from conductor.broker.addresses import Addresses
    from conductor.broker.node_spec import NodeSpec
    from conductor.core.config import ConductorConfig
    from conductor.core.models import TaskDefinition, TaskResult

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds to connect and start the agents; Celery replaces a child that takes longer than its own limit.
START_LIMIT = 50.0
#: Seconds that agents have to stop.
STOP_LIMIT = 10.0
#: How many of the latest tasks an agent's state names; more would make every task cost more than the last.
HISTORY = 1000


class AgentHost:
    """Hosts agents; its public methods belong to the main thread, the others to the event loop's."""

    def __init__(
        self, config: ConductorConfig, addresses: Addresses, spec: NodeSpec, node_name: str, parent: int
    ) -> None:
        self._config = config
        self._spec = spec
        self._node_name = node_name
        self._parent = parent
        self._runner = LoopThread()
        self._state = RedisStateManager(addresses.redis_url, key_prefix=config.redis.key_prefix)
        self._bus = KombuMessageBus(
            addresses.broker_url,
            buffer_size=config.bus.buffer_size,
            publish_timeout=config.bus.publish_timeout,
            connect_timeout=config.bus.connect_timeout,
        )
        self._events = EventDesk(self._bus, self._after_event)
        self._agents: dict[str, BaseAgent] = {}

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

    def agent(self, agent_id: str) -> BaseAgent:
        """Find a hosted agent; AgentError, code AGENT_NOT_FOUND."""
        if agent_id not in self._agents:
            raise AgentError(
                f"Node {self._node_name} hosts no agent {agent_id!r}.", agent_id, None, "AGENT_NOT_FOUND"
            )
        return self._agents[agent_id]

    def agent_for(self, queue: str, task: TaskDefinition) -> BaseAgent:
        """Find the agent for a task that came through `queue`."""
        return self.agent(self._spec.agent_for(queue, task.assigned_to).agent_id)

    def execute(self, agent: BaseAgent, task: TaskDefinition) -> TaskResult:
        """Have an agent do a task and file the result; never raises for what the agent does."""
        try:
            return self._runner.run(self._execute(agent, task))
        except Interrupted as interruption:
            result = _interrupted(agent, task, interruption.reason)
            self._runner.call(self._file(agent, result))
            return result

    def answer(self, agent: BaseAgent, message: AgentMessage) -> AgentMessage | None:
        """Have an agent handle a message; raises what it raises, and Interrupted."""
        return self._runner.run(self._answer(agent, message))

    @property
    def was_cancelled(self) -> bool:
        """Whether what ran last was cancelled from outside."""
        return self._runner.reason is Reason.CANCELLED

    def file_timeout(self, agent: BaseAgent, message: AgentMessage, seconds: float) -> None:
        """File the result of an assigned task that ran into its time limit."""
        if task_id := assigned_task_id(message):
            self._runner.call(self._file(agent, timed_out(task_id, agent.agent_id, seconds)))

    def reply(self, response: AgentMessage, reply_to: str | None) -> None:
        """Send an answer to who asked for it."""
        self._runner.call(self._events.reply(response, reply_to))

    def file(self, agent: BaseAgent, result: TaskResult) -> None:
        """File a result that the agent did not give itself."""
        self._runner.call(self._file(agent, result))

    async def _start(self) -> None:
        await _when_reachable(self._state.connect)
        await _when_reachable(self._bus.connect)
        for hosted in self._spec.agents:
            agent = hosted.factory(hosted.agent_id, self._config)
            await self._take_over(agent)
            await agent.start()
            await self._events.attend(agent)
            self._agents[agent.agent_id] = agent
            await self._state.save_agent_state(agent.state)

    async def _stop(self) -> None:
        for agent in self._agents.values():
            try:
                await agent.stop()
            except Exception:
                logger.exception("Agent %s failed while stopping", agent.agent_id)
            await self._save(agent)
        await self._bus.disconnect()
        await self._state.disconnect()

    async def _take_over(self, agent: BaseAgent) -> None:
        """Go on from the state that an earlier process of the agent left, perhaps in the middle of a task."""
        state = agent.state
        state.metadata = {**state.metadata, "node": self._node_name, "pid": self._parent}
        try:
            left = await self._state.get_agent_state(agent.agent_id)
            if left is None or left.agent_type != agent.agent_type:
                return
            state.completed_tasks, state.failed_tasks = left.completed_tasks, left.failed_tasks
            state.error_count, state.created_at = left.error_count, left.created_at
            if left.status is AgentStatus.RUNNING and left.current_task_id:
                result = await self._state.get_task_result(left.current_task_id)
                if result and result.status is TaskStatus.FAILED and result.agent_id == agent.agent_id:
                    _note_failure(agent, left.current_task_id)
        except StateError as error:
            logger.warning("The state that agent %s left cannot be used: %s", agent.agent_id, error)

    async def _execute(self, agent: BaseAgent, task: TaskDefinition) -> TaskResult:
        await self._update(agent, status=AgentStatus.RUNNING, current_task_id=task.task_id)
        errors = agent.state.error_count
        try:
            result = await agent.execute_task(task)
        except AgentError as error:
            result = refused(agent, task.task_id, error)
            if agent.state.error_count == errors:
                _note_failure(agent, task.task_id)
        reason = self._runner.reason
        if reason and result.status is not TaskStatus.COMPLETED:
            # The agent turned its cancellation into a failure of its own.
            result = _interrupted(agent, task, reason)
        _shorten(agent)
        await asyncio.gather(self._state.save_task_result(result), self._save(agent))
        return result

    async def _answer(self, agent: BaseAgent, message: AgentMessage) -> AgentMessage | None:
        task_id = assigned_task_id(message)
        if task_id:
            await self._update(agent, status=AgentStatus.RUNNING, current_task_id=task_id)
        saving: list[Awaitable[Any]] = []
        try:
            response = await agent.handle_message(message)
            if response is not None and response.message_type is MessageType.TASK_RESULT:
                result = TaskResultPayload.model_validate(response.payload).result
                saving.append(self._state.save_task_result(result))
            return response
        finally:
            _shorten(agent)
            await asyncio.gather(self._save(agent), *saving)

    async def _file(self, agent: BaseAgent, result: TaskResult) -> None:
        if result.status is TaskStatus.FAILED:
            _note_failure(agent, result.task_id)
        await asyncio.gather(self._state.save_task_result(result), self._save(agent))

    async def _save(self, agent: BaseAgent) -> None:
        state = agent.state
        await self._update(
            agent,
            status=state.status,
            current_task_id=state.current_task_id,
            completed_tasks=state.completed_tasks,
            failed_tasks=state.failed_tasks,
            error_count=state.error_count,
        )

    async def _update(self, agent: BaseAgent, **changes: Any) -> None:
        """Save some fields, leaving the heartbeat to the parent process."""
        try:
            await self._state.update_agent_state(agent.agent_id, **changes)
        except StateError as error:
            if error.error_code != "STATE_NOT_FOUND":
                raise
            await self._state.save_agent_state(agent.state)

    async def _after_event(self, agent: BaseAgent) -> None:
        """Save what a message changed; a node whose agents were all told to stop ends."""
        await self._save(agent)
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


def _interrupted(agent: BaseAgent, task: TaskDefinition, reason: Reason) -> TaskResult:
    if reason is Reason.TIMED_OUT:
        return timed_out(task.task_id, agent.agent_id, task.timeout_seconds)
    if reason is Reason.CANCELLED:
        return cancelled(task.task_id, agent.agent_id)
    error = AgentError(
        "The agent cancelled its own task.", agent.agent_id, task.task_id, "TASK_CANCELLED_ITSELF"
    )
    return refused(agent, task.task_id, error)


def _note_failure(agent: BaseAgent, task_id: str) -> None:
    state = agent.state
    if task_id not in state.failed_tasks:
        state.failed_tasks = [*state.failed_tasks, task_id]
    state.completed_tasks = [other for other in state.completed_tasks if other != task_id]
    state.error_count += 1


def _shorten(agent: BaseAgent) -> None:
    state = agent.state
    if len(state.completed_tasks) > HISTORY:
        state.completed_tasks = state.completed_tasks[-HISTORY:]
    if len(state.failed_tasks) > HISTORY:
        state.failed_tasks = state.failed_tasks[-HISTORY:]
