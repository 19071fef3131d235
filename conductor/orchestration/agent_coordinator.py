"""Agents of this process, and the dispatching of tasks to them."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from conductor.core.enums import AgentStatus, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError, PolicyViolationError
from conductor.core.fields import utc_now
from conductor.core.log_ids import bound_ids
from conductor.core.models import TaskResult, workflow_mark
from conductor.orchestration.error_handler import ErrorAction, ErrorHandler
from conductor.orchestration.policy_engine import Reservation
from conductor.orchestration.waiting import WaitingLines

if TYPE_CHECKING:
    from conductor.agents.base import BaseAgent
    from conductor.core.enums import AgentType
    from conductor.core.models import TaskDefinition
    from conductor.orchestration.message_bus import MessageBus
    from conductor.orchestration.policy_engine import PolicyEngine
    from conductor.orchestration.state_manager import StateManager

logger = logging.getLogger(__name__)

NOBODY = "coordinator"
"""The agent id of errors that are about no agent."""


class AgentCoordinator:
    """Holds agents of this process and gives each of them one task at a time; belongs to one event loop.

    A task that runs longer than its `timeout_seconds` is cancelled and FAILED, code TASK_TIMED_OUT, as on a
    node; code that blocks the event loop cannot be ended here.

    With an error handler, a task that ended in an AgentError, or in an exception that became a FAILED result,
    is tried again by the same agent as long as the handler says RETRY. `message_bus` and `state_manager` are
    connected by `start` if they were not, and then disconnected by `stop`.
    """

    def __init__(
        self,
        message_bus: MessageBus,
        state_manager: StateManager,
        policy_engine: PolicyEngine | None = None,
        error_handler: ErrorHandler | None = None,
    ) -> None:
        self.message_bus = message_bus
        self.state_manager = state_manager
        self.policy_engine = policy_engine
        self.error_handler = error_handler
        self._agents: dict[str, BaseAgent] = {}
        self._reserved: set[str] = set()
        self._choosing = asyncio.Lock()
        self._lines = WaitingLines()
        self._connected_here: list[MessageBus | StateManager] = []
        self._started = False

    @property
    def is_started(self) -> bool:
        """Whether `start` was called and `stop` was not."""
        return self._started

    @property
    def agent_count(self) -> int:
        """How many agents are registered."""
        return len(self._agents)

    async def start(self) -> None:
        """Make the coordinator usable; does nothing when it is."""
        if self._started:
            return
        for service in (self.message_bus, self.state_manager):
            if not service.is_connected:
                await service.connect()
                self._connected_here.append(service)
        self._started = True

    async def stop(self) -> None:
        """Stop and forget all agents, keeping their states; does nothing when done.

        An agent that fails in stopping is logged and does not keep the others from being stopped.
        """
        if not self._started:
            return
        self._started = False
        for agent in list(self._agents.values()):
            await self._stop_agent(agent)
        self._agents.clear()
        while self._connected_here:
            await self._connected_here.pop().disconnect()

    async def register_agent(self, agent: BaseAgent) -> None:
        """Start `agent` and save its state; AgentError, code AGENT_ALREADY_REGISTERED, if its id is taken."""
        if agent.agent_id in self._agents:
            raise AgentError(
                f"There is an agent {agent.agent_id!r} already; unregister it first or use another id.",
                agent.agent_id,
                error_code="AGENT_ALREADY_REGISTERED",
            )
        agent.attach(self.message_bus, self.state_manager)
        self._agents[agent.agent_id] = agent
        self._reserved.add(agent.agent_id)
        try:
            await agent.start()
            await self.state_manager.save_agent_state(agent.state)
        except BaseException:
            del self._agents[agent.agent_id]
            raise
        finally:
            self._reserved.discard(agent.agent_id)

    async def unregister_agent(self, agent_id: str) -> bool:
        """Stop an agent and delete its state; False if there is no such agent."""
        agent = self._agents.pop(agent_id, None)
        if agent is None:
            return False
        try:
            await agent.stop()
        finally:
            await self.state_manager.delete_agent_state(agent_id)
        return True

    def get_agent(self, agent_id: str) -> BaseAgent | None:
        """Give an agent, None if there is no such."""
        return self._agents.get(agent_id)

    def get_agents_by_type(self, agent_type: AgentType) -> list[BaseAgent]:
        """Give the agents of a type, in the order of their registration."""
        return [agent for agent in self._agents.values() if agent.agent_type == agent_type]

    def get_available_agents(
        self,
        type: AgentType | None = None,  # noqa: A002  the contract's name
        *,
        agent_type: AgentType | None = None,
    ) -> list[BaseAgent]:
        """Give the agents, of a type or of all, that could take a task now; both arguments mean the same."""
        wanted = type or agent_type
        agents = self.list_agents() if wanted is None else self.get_agents_by_type(wanted)
        return [
            agent for agent in agents if agent.state.is_available and agent.agent_id not in self._reserved
        ]

    def list_agents(self) -> list[BaseAgent]:
        """Give all agents, in the order of their registration."""
        return list(self._agents.values())

    async def dispatch_task(
        self, task: TaskDefinition, *, agent_id: str | None = None, wait: float | None = None
    ) -> TaskResult:
        """Have an available agent of the type, or the one named, do `task`; save the result and its state.

        A task that the policies deny waits up to `wait` seconds for them to allow it, unless they say that
        waiting does not help; with `math.inf` as long as they say that it does. Raises AgentError with
        NO_AGENT_TYPE, NO_AVAILABLE_AGENT or POLICY_VIOLATION before the task is run, and what
        `BaseAgent.execute_task` raises.
        """
        agent, reservation = await self._admit(task, agent_id, wait)
        try:
            await reservation.confirm()
            attempt = 0
            while (result := await self._try(agent, task, attempt)) is None:
                attempt += 1
            return result
        finally:
            try:
                await asyncio.shield(reservation.release())
            finally:
                self._reserved.discard(agent.agent_id)

    async def _admit(
        self, task: TaskDefinition, agent_id: str | None, wait: float | None
    ) -> tuple[BaseAgent, Reservation]:
        line = (task.assigned_to, agent_id, task.metadata.get("workflow_id"))
        try:
            return await self._lines.pass_through(line, partial(self._reserve, task, agent_id), wait)
        except PolicyViolationError as error:
            details = {"policy_name": error.policy_name, "violation_details": error.violation_details}
            raise AgentError(
                f"Task {task.name!r} ({task.task_id}) is not dispatched. {error.message}",
                error.details.get("agent_id", NOBODY),
                task.task_id,
                "POLICY_VIOLATION",
                details,
            ) from error

    async def _reserve(self, task: TaskDefinition, agent_id: str | None) -> tuple[BaseAgent, Reservation]:
        """Choose the agent with the fewest tasks behind it; nobody else gets it until it was run."""
        # What a policy allows must still be true when the agent is reserved.
        async with self._choosing:
            wanted = self._wanted(task, agent_id)
            available = [agent for agent in self.get_available_agents() if agent in wanted]
            if not available:
                which = f"agent {agent_id!r}" if agent_id else f"{task.assigned_to} agent"
                reason = f"found no available {which} ({len(wanted)} registered)"
                raise self._refusal(task, "NO_AVAILABLE_AGENT", reason)
            agent = min(available, key=lambda candidate: candidate.state.total_tasks)
            reservation = await self._ask_policies(agent, task)
            self._reserved.add(agent.agent_id)
        return agent, reservation

    def _wanted(self, task: TaskDefinition, agent_id: str | None) -> list[BaseAgent]:
        if agent_id is not None:
            return [self._agents[agent_id]] if agent_id in self._agents else []
        if task.assigned_to is None:
            raise self._refusal(task, "NO_AGENT_TYPE", "has no agent type; set assigned_to")
        return self.get_agents_by_type(task.assigned_to)

    async def _ask_policies(self, agent: BaseAgent, task: TaskDefinition) -> Reservation:
        if self.policy_engine is None:
            return Reservation((), {})
        states = {
            agent_id: registered.state.model_copy(update={"status": AgentStatus.RUNNING})
            if agent_id in self._reserved
            else registered.state
            for agent_id, registered in self._agents.items()
        }
        context = {"agent_states": states, "agent_state": agent.state, "task": task}
        try:
            return await self.policy_engine.reserve(context)
        except PolicyViolationError as error:
            error.details["agent_id"] = agent.agent_id
            raise

    async def _try(self, agent: BaseAgent, task: TaskDefinition, attempt: int) -> TaskResult | None:
        """Run the task once; None when it is to be run again, after the wait before that."""
        with bound_ids({"task_id": task.task_id, "agent_id": agent.agent_id}):
            try:
                result = await self._run(agent, task)
            except AgentError as error:
                if await self._to_retry(error, agent, task, attempt):
                    return None
                raise
            failure = _error_of(result)
            if failure is None:
                if self.error_handler is not None:
                    await self.error_handler.get_circuit_breaker(agent.agent_id).record_success()
                return result
            return None if await self._to_retry(failure, agent, task, attempt) else result

    async def _run(self, agent: BaseAgent, task: TaskDefinition) -> TaskResult:
        try:
            busy = {"status": AgentStatus.RUNNING, "current_task_id": task.task_id}
            await self.state_manager.save_agent_state(agent.state.model_copy(update=busy))
            result = await _in_time(agent, task)
            await self.state_manager.save_task_result(result)
            return result
        finally:
            # One that was unregistered meanwhile has no state any more.
            if self._agents.get(agent.agent_id) is agent:
                await self.state_manager.save_agent_state(agent.state)

    async def _to_retry(self, error: Exception, agent: BaseAgent, task: TaskDefinition, attempt: int) -> bool:
        if self.error_handler is None:
            return False
        context: dict[str, Any] = {"agent_id": agent.agent_id, "task_id": task.task_id, "attempt": attempt}
        if await self.error_handler.handle_error(error, context) is not ErrorAction.RETRY:
            return False
        return await self.error_handler.retry_task(task.task_id, agent.agent_id, attempt)

    async def _stop_agent(self, agent: BaseAgent) -> None:
        try:
            await agent.stop()
            await self.state_manager.save_agent_state(agent.state)
        except Exception:
            logger.exception("agent %s could not be stopped", agent.agent_id)

    def _refusal(self, task: TaskDefinition, code: str, reason: str) -> AgentError:
        return AgentError(f"Task {task.name!r} ({task.task_id}) {reason}.", NOBODY, task.task_id, code)


async def _in_time(agent: BaseAgent, task: TaskDefinition) -> TaskResult:
    started_at = utc_now()
    try:
        async with asyncio.timeout(task.timeout_seconds) as limit:
            return await agent.execute_task(task)
    except TimeoutError:
        if not limit.expired():
            raise
    # The agent knows only that it was cancelled.
    agent.state.error_count += 1
    if task.task_id not in agent.state.failed_tasks:
        agent.state.failed_tasks.append(task.task_id)
    completed_at = utc_now()
    error = {"error_type": "TimeoutError", "error_code": "TASK_TIMED_OUT"}
    return TaskResult(
        task_id=task.task_id,
        agent_id=agent.agent_id,
        status=TaskStatus.FAILED,
        error_message=f"The task timed out after {task.timeout_seconds} s.",
        started_at=started_at,
        completed_at=completed_at,
        duration_seconds=(completed_at - started_at).total_seconds(),
        metadata={"error": error, **workflow_mark(task)},
    )


def _error_of(result: TaskResult) -> ConductorError | None:
    """Give the exception behind a FAILED result; a result that an agent itself declared failed has none."""
    error = result.metadata.get("error")
    if result.status is not TaskStatus.FAILED or not isinstance(error, dict):
        return None
    return ConductorError(
        result.error_message or "The task failed.", error.get("error_code", "UNKNOWN_ERROR"), error
    )
