"""The base of every agent: its life, its state, and one task at a time."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from conductor.agents.context import TaskContext, context_of, entered
from conductor.core.enums import AgentStatus, AgentType, MessageType, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage, TaskAssignmentPayload, TaskResultPayload
from conductor.core.models import AgentIdentity, TaskDefinition, TaskResult, workflow_mark
from conductor.core.secrets import scrub
from conductor.core.state import AgentState
from conductor.core.tracing import ended_in, span_of, task_attributes
from conductor.core.wording import error_text, traceback_text

if TYPE_CHECKING:
    from conductor.agents.services import Bus, State
    from conductor.core.config import ConductorConfig

logger = logging.getLogger(__name__)


class BaseAgent(ABC):
    """An agent lives on one event loop, and all its methods are called there, never from another thread."""

    def __init__(
        self,
        agent_id: str,
        agent_type: AgentType,
        config: ConductorConfig,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.config = config
        self._identity = AgentIdentity(
            agent_id=agent_id, agent_type=agent_type, name=name or agent_id, description=description
        )
        self._state = AgentState(agent_id=agent_id, agent_type=agent_type)
        self._running: list[str] = []
        self._bus: Bus | None = None
        self._state_manager: State | None = None

    def attach(self, bus: Bus, state_manager: State) -> None:
        """Give the agent the bus and the state manager of its host, before it is started."""
        self._bus, self._state_manager = bus, state_manager

    @property
    def is_hosted(self) -> bool:
        """Whether the agent has a bus and a state manager."""
        return self._bus is not None and self._state_manager is not None

    @property
    def bus(self) -> Bus:
        """The host's message bus; AgentError, code NOT_HOSTED, for an agent that nobody hosts."""
        if self._bus is None:
            raise self._not_hosted("bus")
        return self._bus

    @property
    def state_manager(self) -> State:
        """The host's state manager; AgentError, code NOT_HOSTED, for an agent that nobody hosts."""
        if self._state_manager is None:
            raise self._not_hosted("state manager")
        return self._state_manager

    @property
    def identity(self) -> AgentIdentity:
        """Who the agent is."""
        return self._identity

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self._identity.agent_id

    @property
    def agent_type(self) -> AgentType:
        """What the agent is able to do."""
        return self._identity.agent_type

    @property
    def state(self) -> AgentState:
        """The agent's state itself, not a copy."""
        return self._state

    @property
    def status(self) -> AgentStatus:
        """What the agent is doing now."""
        return self._state.status

    def context(self, task: TaskDefinition) -> TaskContext:
        """Give what there is at hand for `task`: `progress`, `log` and more; one and the same in a run."""
        return context_of(self, task) or TaskContext(self, task, self._task_logger())

    @abstractmethod
    async def _validate_task(self, task: TaskDefinition) -> bool:
        """Tell whether the agent is able to do `task`."""

    @abstractmethod
    async def _execute(self, task: TaskDefinition) -> TaskResult:
        """Do `task`; what is raised becomes a FAILED result, an AgentError goes to the caller."""

    async def _on_start(self) -> None:  # noqa: B027  optional, not abstract
        """Acquire what the agent needs; for subclasses."""

    async def _on_stop(self) -> None:  # noqa: B027  optional, not abstract
        """Release what `_on_start` acquired; for subclasses."""

    async def start(self) -> None:
        """Make the agent IDLE; if `_on_start` raises, it is FAILED and the error goes to the caller."""
        try:
            await self._on_start()
        except BaseException:
            self._set_status(AgentStatus.FAILED)
            raise
        self._set_status(AgentStatus.IDLE)

    async def stop(self) -> None:
        """Make the agent CANCELLED, also when `_on_stop` raises; a running task is left to end by itself."""
        if self.status is AgentStatus.CANCELLED:
            return
        self._set_status(AgentStatus.CANCELLED)
        await self._on_stop()

    async def send_heartbeat(self) -> None:
        """Stamp the state with the present time."""
        self._state.last_heartbeat = utc_now()
        self._state.updated_at = self._state.last_heartbeat

    async def execute_task(self, task: TaskDefinition) -> TaskResult:
        """Do `task` and give its timed result.

        Raises AgentError with code TASK_VALIDATION_FAILED if the task is not for this agent, and AgentErrors
        of the agent's own. Anything else that goes wrong is a FAILED result, with error_type, error_code and
        traceback in `metadata["error"]`.
        """
        attributes = {**task_attributes(task), "conductor.agent.id": self.agent_id}
        with span_of(f"execute {task.name}", "internal", attributes) as span:
            async with entered(TaskContext(self, task, self._task_logger())):
                await self._require_valid(task)
                return ended_in(span, await self._carry_out(task))

    async def handle_message(self, message: AgentMessage) -> AgentMessage | None:
        """React to a message: give the TASK_RESULT for a TASK_ASSIGNMENT, else None.

        Raises what `execute_task` raises, and AgentError, code INVALID_PAYLOAD, if there is no task inside.
        """
        if message.message_type is MessageType.TASK_ASSIGNMENT:
            result = await self.execute_task(self._assigned_task(message))
            payload = TaskResultPayload(result=result).model_dump(mode="json")
            return message.create_response(self.agent_id, MessageType.TASK_RESULT, payload)
        if message.message_type is MessageType.CONTROL and message.payload.get("command") == "stop":
            await self.stop()
        return None

    def _create_result(
        self, task_id: str, status: TaskStatus, output: dict[str, Any] | None, error: str | None = None
    ) -> TaskResult:
        """Make a result of this agent."""
        return TaskResult(
            task_id=task_id,
            agent_id=self.agent_id,
            status=status,
            output_data=output or {},
            error_message=error,
        )

    def _task_logger(self) -> logging.Logger:
        """Give the logger of the agent's own code, which its contexts log to."""
        return logging.getLogger(type(self).__module__)

    async def _carry_out(self, task: TaskDefinition) -> TaskResult:
        self._begin(task)
        try:
            result = await self._timed(task)
        except AgentError:
            self._state.error_count += 1
            self._file(task.task_id, TaskStatus.FAILED)
            raise
        else:
            self._file(task.task_id, result.status)
            return result
        finally:
            self._end(task)

    async def _require_valid(self, task: TaskDefinition) -> None:
        try:
            valid = await self._validate_task(task)
        except AgentError:
            raise
        except Exception as error:
            raise self._invalid(task, f": {error}") from error
        if not valid:
            raise self._invalid(task, ": its _validate_task refuses it.")

    def _invalid(self, task: TaskDefinition, reason: str) -> AgentError:
        return AgentError(
            f"Agent {self.agent_id!r} cannot do task {task.name!r} ({task.task_id}){reason}",
            self.agent_id,
            task.task_id,
            "TASK_VALIDATION_FAILED",
        )

    async def _timed(self, task: TaskDefinition) -> TaskResult:
        started_at, started = utc_now(), time.monotonic()
        try:
            result = await self._execute(task)
            if not isinstance(result, TaskResult):
                raise TypeError(
                    f"{type(self).__name__}._execute gave {type(result).__name__}, not a TaskResult"
                )
        except AgentError:
            raise
        except (Exception, SystemExit) as error:
            # SystemExit: a tool that is used as a library and ends like a program would end the event loop.
            logger.exception("agent %s failed in task %s", self.agent_id, task.task_id)
            self._state.error_count += 1
            result = self._failure(task, error)
        changes = {
            "error_message": result.error_message and scrub(result.error_message),
            "started_at": started_at,
            "completed_at": utc_now(),
            "duration_seconds": time.monotonic() - started,
        }
        return result.model_copy(update=changes | {"metadata": result.metadata | workflow_mark(task)})

    def _failure(self, task: TaskDefinition, error: Exception | SystemExit) -> TaskResult:
        result = self._create_result(task.task_id, TaskStatus.FAILED, {}, error_text(error))
        result.metadata["error"] = {
            "error_type": type(error).__name__,
            "error_code": getattr(error, "error_code", "UNKNOWN_ERROR"),
            "traceback": traceback_text(error),
        }
        return result

    def _begin(self, task: TaskDefinition) -> None:
        self._running.append(task.task_id)
        self._state.current_task_id = task.task_id
        self._set_status(AgentStatus.RUNNING)

    def _end(self, task: TaskDefinition) -> None:
        self._running.remove(task.task_id)
        self._state.current_task_id = self._running[-1] if self._running else None
        # Whoever stopped the agent meanwhile is not overruled.
        if self.status is AgentStatus.RUNNING and not self._running:
            self._set_status(AgentStatus.IDLE)

    def _file(self, task_id: str, status: TaskStatus) -> None:
        """Keep the task in one list, once, however often it was run."""
        completed, failed = self._state.completed_tasks, self._state.failed_tasks
        for filed in (completed, failed):
            if task_id in filed:
                filed.remove(task_id)
        (completed if status is TaskStatus.COMPLETED else failed).append(task_id)

    def _not_hosted(self, what: str) -> AgentError:
        return AgentError(
            f"Agent {self.agent_id!r} has no {what}: register it with an AgentCoordinator, host it on a "
            "node, or call attach(bus, state_manager).",
            self.agent_id,
            error_code="NOT_HOSTED",
        )

    def _set_status(self, status: AgentStatus) -> None:
        self._state.status = status
        self._state.updated_at = utc_now()

    def _assigned_task(self, message: AgentMessage) -> TaskDefinition:
        try:
            return TaskAssignmentPayload.model_validate(message.payload).task
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "payload"
            raise AgentError(
                f"Message {message.message_id} assigns no valid task: {where}: {problem['msg']}. Its payload "
                'is {"task": {"name": ..., "assigned_to": ..., "input_data": {...}}}.',
                self.agent_id,
                error_code="INVALID_PAYLOAD",
                details={"message_id": message.message_id},
            ) from error
