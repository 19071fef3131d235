"""A Conductor without servers and other processes, for tests of agents and of what calls them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from celery import states

from conductor.agents.base import BaseAgent
from conductor.broker.result_listener import FollowedTask
from conductor.broker.results import (
    UNKNOWN_AGENT,
    cancelled,
    error_response,
    refused,
    result_without_agent,
    task_response,
)
from conductor.broker.task_handle import TaskHandle
from conductor.core.channels import BROADCAST, RESPONSE, agent_channel
from conductor.core.config import ConductorConfig
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import AgentMessage, TaskAssignmentPayload
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.error_handler import ErrorHandler
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.policy_factory import build_policy_engine
from conductor.orchestration.state_manager import InMemoryStateManager
from conductor.orchestration.waiting import WaitingLines

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from conductor.core.models import TaskDefinition, TaskResult
    from conductor.core.state import AgentState
    from conductor.orchestration.policy_engine import PolicyEngine, Reservation

    AgentFactory = Callable[[str, ConductorConfig], BaseAgent]


class InMemoryConductor:
    """What a Conductor does, with agents of this process; `async with InMemoryConductor() as conductor`.

    Bus and state are in memory, agents are added with `add_agent`, and tasks wait until one is free, are
    tried again and run out of time as on nodes. Everything is gone with it. Belongs to one event loop.
    """

    def __init__(
        self, config: ConductorConfig | None = None, *, policy_engine: PolicyEngine | None = None
    ) -> None:
        self.config = config or ConductorConfig()
        if policy_engine is None and self.config.policies:
            policy_engine = build_policy_engine(self.config.policies, self.config.source_of("policies"))
        self.policy_engine = policy_engine
        self.bus = InMemoryMessageBus(retry_policy=self.config.errors.retry)
        self.state = InMemoryStateManager()
        self.error_handler = ErrorHandler(self.bus, self.state, self.config.errors.retry)
        self._coordinator = AgentCoordinator(self.bus, self.state, error_handler=self.error_handler)
        self._tasks: dict[str, FollowedTask] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._lines = WaitingLines()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        """Connect bus and state; does nothing when connected."""
        await self._coordinator.start()

    async def disconnect(self) -> None:
        """Cancel what runs, stop all agents and forget everything; does nothing when not connected."""
        going = [*self._working.values(), *self._answering]
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        await self._coordinator.stop()
        self._tasks.clear()

    async def add_agent(self, agent: BaseAgent | AgentFactory, agent_id: str | None = None) -> BaseAgent:
        """Start an agent: one that was made, or a class or function with `@agent`, called with an id.

        It hears its own channel and broadcasts. Without `agent_id` it gets the next free one, as shout-1.
        AgentError, code AGENT_ALREADY_REGISTERED, for an id that is taken.
        """
        made = agent if isinstance(agent, BaseAgent) else agent(agent_id or self._free_id(agent), self.config)
        await self._coordinator.register_agent(made)
        await self.bus.subscribe(agent_channel(made.agent_id), partial(self._on_own, made))
        await self.bus.subscribe(BROADCAST, partial(self._on_event, made))
        self._wake()
        return made

    async def living_agents(self, agent_type: str | None = None) -> list[AgentState]:
        """List the states of the agents, of a type or of all."""
        return [
            agent.state
            for agent in self._coordinator.list_agents()
            if agent_type is None or agent.agent_type == agent_type
        ]

    async def dispatch(
        self,
        task: TaskDefinition,
        agent_id: str | None = None,
        *,
        expires: float | None = None,
        wait: float | None = None,
    ) -> TaskHandle:
        """See `Conductor.dispatch`; a task for an agent that there is not waits until it is added."""
        self._require_connection()
        self._require_receiver(task, agent_id)
        reservation = await self._admit(task, agent_id, wait)
        followed = self._tasks[task.task_id] = FollowedTask(task.task_id)
        work = asyncio.create_task(self._carry_out(followed, task, agent_id, expires, reservation))
        self._working[task.task_id] = work
        work.add_done_callback(partial(self._on_end, followed))
        # What is cancelled before it has begun could not clean up.
        await asyncio.sleep(0)
        return self._handle(followed)

    async def handle(self, task_id: str) -> TaskHandle:
        """See `Conductor.handle`."""
        if task_id not in self._tasks:
            raise AgentError(f"Nothing is known of task {task_id!r}.", "", task_id, "TASK_NOT_FOUND")
        return self._handle(self._tasks[task_id])

    async def cancel_task(self, task_id: str, run: str = "") -> bool:
        """See `Conductor.cancel_task`."""
        work = self._working.get(task_id)
        return work is not None and work.cancel()

    async def dispatch_task(self, task: TaskDefinition, *, wait: float | None = None) -> TaskResult:
        """See `Conductor.dispatch_task`; AgentError, code NO_AVAILABLE_AGENT, at once."""
        if task.assigned_to is not None and not self._coordinator.get_agents_by_type(task.assigned_to):
            raise AgentError(
                f"No agent of type {task.assigned_to} was added to do task {task.name!r}.",
                "",
                task.task_id,
                "NO_AVAILABLE_AGENT",
            )
        handle = await self.dispatch(task, wait=wait)
        try:
            return await handle.result()
        except BaseException:
            await handle.cancel()
            raise

    def _handle(self, followed: FollowedTask) -> TaskHandle:
        return TaskHandle(followed, "", self.cancel_task)

    def _free_id(self, agent: AgentFactory) -> str:
        base = str(getattr(agent, "__name__", "agent")).lower()
        taken = {known.agent_id for known in self._coordinator.list_agents()}
        return next(name for n in range(1, len(taken) + 2) if (name := f"{base}-{n}") not in taken)

    def _require_connection(self) -> None:
        if not self._coordinator.is_started:
            raise ConductorError(
                "Cannot dispatch a task: this InMemoryConductor is not connected. Use 'async with "
                "InMemoryConductor() as conductor'.",
                "NOT_CONNECTED",
            )

    def _require_receiver(self, task: TaskDefinition, agent_id: str | None) -> None:
        if task.assigned_to is None and agent_id is None:
            raise AgentError(
                f"Task {task.name!r} ({task.task_id}) is for nobody: set assigned_to, or name an agent.",
                "",
                task.task_id,
                "NO_AGENT_TYPE",
            )
        if task.task_id in self._working:
            raise AgentError(
                f"Task {task.task_id} was dispatched before and has not ended.",
                "",
                task.task_id,
                "TASK_ALREADY_DISPATCHED",
            )

    async def _admit(
        self, task: TaskDefinition, agent_id: str | None, wait: float | None
    ) -> Reservation | None:
        engine = self.policy_engine
        if engine is None:
            return None

        async def ask() -> Reservation:
            known = {agent.agent_id: agent.state for agent in self._coordinator.list_agents()}
            context: dict[str, Any] = {"task": task, "agent_states": known}
            if agent_id in known:
                context["agent_state"] = known[agent_id]
            return await engine.reserve(context)

        line = (task.assigned_to, agent_id, task.metadata.get("workflow_id"))
        reservation = await self._lines.pass_through(line, ask, wait)
        await reservation.confirm()
        return reservation

    async def _carry_out(
        self,
        followed: FollowedTask,
        task: TaskDefinition,
        agent_id: str | None,
        expires: float | None,
        reservation: Reservation | None,
    ) -> None:
        try:
            result = await self._result(followed, task, agent_id, expires)
        except asyncio.CancelledError:
            result = cancelled(task.task_id, UNKNOWN_AGENT)
        finally:
            if reservation is not None:
                await asyncio.shield(reservation.release())
        await self.state.save_task_result(result)
        followed.ended.set_result(result)

    async def _result(
        self, followed: FollowedTask, task: TaskDefinition, agent_id: str | None, expires: float | None
    ) -> TaskResult:
        loop = asyncio.get_running_loop()
        deadline = None if expires is None else loop.time() + expires
        while True:
            changed, followed.state = self._changed, states.STARTED
            try:
                return await self._coordinator.dispatch_task(task, agent_id=agent_id)
            except AgentError as error:
                if error.error_code != "NO_AVAILABLE_AGENT":
                    return self._refused(task, error)
            followed.state = states.PENDING
            try:
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
            except TimeoutError:
                text = f"No agent began the task within {expires:g} s."
                return result_without_agent(
                    task.task_id, UNKNOWN_AGENT, TaskStatus.FAILED, text, "TASK_EXPIRED"
                )

    def _refused(self, task: TaskDefinition, error: AgentError) -> TaskResult:
        agent = self._coordinator.get_agent(str(error.details.get("agent_id")))
        if agent is not None:
            return refused(agent, task.task_id, error)
        return result_without_agent(
            task.task_id, UNKNOWN_AGENT, TaskStatus.FAILED, error.message, error.error_code
        )

    def _on_end(self, followed: FollowedTask, work: asyncio.Task[None]) -> None:
        del self._working[followed.task_id]
        if not work.cancelled() and (error := work.exception()) is not None:
            followed.ended.set_exception(error)
        self._wake()

    def _wake(self) -> None:
        """Have all tasks that wait for an agent look again, in the order in which they came."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _on_own(self, agent: BaseAgent, message: AgentMessage) -> None:
        if message.message_type is MessageType.TASK_ASSIGNMENT:
            self._start(self._do_assigned(agent, message))
        else:
            await self._on_event(agent, message)

    async def _on_event(self, agent: BaseAgent, message: AgentMessage) -> None:
        response = await agent.handle_message(message)
        if response is not None:
            await self.bus.publish(RESPONSE, response)

    async def _do_assigned(self, agent: BaseAgent, message: AgentMessage) -> None:
        try:
            task = TaskAssignmentPayload.model_validate(message.payload).task
            result = await (await self.dispatch(task, agent.agent_id)).result()
            response = task_response(message, agent.agent_id, result)
        except (ConductorError, ValueError) as error:
            code = getattr(error, "error_code", "INVALID_PAYLOAD")
            response = error_response(message, agent.agent_id, code, str(error))
        with suppress(ConductorError):
            await self.bus.publish(RESPONSE, response)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
