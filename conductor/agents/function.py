"""An async function as an agent: `@agent("coding")`."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from conductor.agents.base import BaseAgent
from conductor.agents.signature import Role, read_signature
from conductor.agents.typed_data import InvalidDataError
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError, ConfigurationError
from conductor.core.models import TaskDefinition, TaskResult

if TYPE_CHECKING:
    from conductor.agents.context import TaskContext
    from conductor.core.config import ConductorConfig

In = TypeVar("In")
Out = TypeVar("Out")

Gives = Coroutine[Any, Any, Out]


def agent(agent_type: str, *, name: str | None = None, description: str | None = None) -> AgentMaker:
    """Make an agent of the async function below.

    The function takes `data`, the task's input, and `context`, a TaskContext; one of them, or nothing. `data`
    and what it returns are Pydantic models, dicts, or not annotated; it may return None. Unless given, `name`
    is the function's and `description` the first line of its docstring. ConfigurationError, code BAD_AGENT,
    for a type of agent that there is not, and for functions of another shape.
    """
    try:
        known = AgentType(agent_type)
    except ValueError:
        raise ConfigurationError(
            f"@agent needs a type of agent, and there is no {agent_type!r}: choose {', '.join(AgentType)}, "
            f'as in @agent("{AgentType.CODING}").',
            "BAD_AGENT",
        ) from None
    return AgentMaker(known, name, description)


class Handle(Protocol):
    """The part of a TaskHandle that `AgentFunction.run` uses."""

    async def result(self, timeout: float | None = None) -> TaskResult:
        """See `TaskHandle.result`."""

    async def cancel(self) -> bool:
        """See `TaskHandle.cancel`."""


class Dispatches(Protocol):
    """The part of a Conductor that `AgentFunction.run` uses."""

    async def dispatch(self, task: TaskDefinition, agent_id: str | None = None) -> Handle:
        """See `Conductor.dispatch`."""


class AgentFunction(Generic[In, Out]):
    """What `@agent` makes: `shout(agent_id, config)` is an agent, and so are nodes given it as an agent.

    `function` is the function itself. The other methods are for those who give it tasks.
    """

    def __init__(
        self,
        function: Callable[..., Gives[Out]],
        agent_type: AgentType,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.signature = read_signature(function)
        self.function = function
        self.agent_type = agent_type
        self.name = name or getattr(function, "__name__", "agent")
        lines = (inspect.getdoc(function) or "").splitlines()
        self.description = description or (lines[0] if lines else None)
        self.__name__ = self.name
        self.__qualname__ = getattr(function, "__qualname__", self.name)
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__

    def __repr__(self) -> str:
        return f"<agent {self.__module__}:{self.__qualname__} of type {self.agent_type}>"

    def __call__(self, agent_id: str, config: ConductorConfig) -> BaseAgent:
        """Make an agent that does its tasks with the function."""
        return FunctionAgent(agent_id, config, self)

    def task(self, data: In | dict[str, Any] | None = None, /, **fields: Any) -> TaskDefinition:
        """Make a task for an agent of this kind; `fields` are those of TaskDefinition.

        AgentError, code TASK_VALIDATION_FAILED, for data that the agent would refuse.
        """
        try:
            checked = self.signature.input.write({} if data is None else data)
        except InvalidDataError as error:
            text = f"No task for {self.name} can be made of this input: {error}."
            details = {"problems": error.problems}
            raise AgentError(text, "", None, "TASK_VALIDATION_FAILED", details) from error
        given = {"name": self.name, "assigned_to": self.agent_type, **fields}
        return TaskDefinition(**given, input_data=checked)

    def output(self, result: TaskResult) -> Out:
        """Give what the function returned.

        Raises AgentError with the task's own code for a result that is not COMPLETED, and with INVALID_OUTPUT
        for one of another agent, whose output is of another type.
        """
        if result.status is not TaskStatus.COMPLETED:
            raise _error_of(result)
        try:
            returned: Out = self.signature.output.read(result.output_data)
        except InvalidDataError as error:
            text = f"The output of task {result.task_id} is none of {self.name}: {error}."
            details = {"problems": error.problems}
            raise AgentError(text, result.agent_id, result.task_id, "INVALID_OUTPUT", details) from error
        return returned

    async def run(
        self,
        conductor: Dispatches,
        data: In | dict[str, Any] | None = None,
        /,
        *,
        agent_id: str | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Out:
        """Have a task done by an agent of the type, or by the one named, and give what it returned.

        A task that nobody waits for any more, because `timeout` seconds are over or the caller was cancelled,
        is cancelled. Raises what `task`, `Conductor.dispatch`, `TaskHandle.result` and `output` raise.
        """
        handle = await conductor.dispatch(self.task(data, **fields), agent_id)
        try:
            result = await handle.result(timeout)
        except BaseException:
            await asyncio.shield(handle.cancel())
            raise
        return self.output(result)


class AgentMaker:
    """What stands in `@agent(...)`: a call makes an AgentFunction."""

    def __init__(self, agent_type: AgentType, name: str | None, description: str | None) -> None:
        self._agent_type = agent_type
        self._name = name
        self._description = description

    @overload
    def __call__(
        self, function: Callable[[TaskContext], Gives[Out]], /
    ) -> AgentFunction[dict[str, Any], Out]: ...
    @overload
    def __call__(self, function: Callable[[], Gives[Out]], /) -> AgentFunction[dict[str, Any], Out]: ...
    @overload
    def __call__(self, function: Callable[[In, TaskContext], Gives[Out]], /) -> AgentFunction[In, Out]: ...
    @overload
    def __call__(self, function: Callable[[In], Gives[Out]], /) -> AgentFunction[In, Out]: ...
    def __call__(self, function: Callable[..., Gives[Any]], /) -> AgentFunction[Any, Any]:
        """Make it; ConfigurationError, code BAD_AGENT, for a function that cannot be an agent."""
        return AgentFunction(function, self._agent_type, self._name, self._description)


class FunctionAgent(BaseAgent):
    """An agent whose work is a function."""

    def __init__(self, agent_id: str, config: ConductorConfig, kind: AgentFunction[Any, Any]) -> None:
        super().__init__(agent_id, kind.agent_type, config, kind.name, kind.description)
        self._kind = kind

    def _task_logger(self) -> logging.Logger:
        return logging.getLogger(self._kind.__module__)

    async def _validate_task(self, task: TaskDefinition) -> bool:
        self._input(task)
        return True

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        signature = self._kind.signature
        arguments = [
            self._input(task) if role is Role.DATA else self.context(task) for role in signature.roles
        ]
        returned = await self._kind.function(*arguments)
        try:
            output = signature.output.write(returned)
        except InvalidDataError as error:
            text = f"{self._kind.name} returned what is not of its return type: {error}."
            raise ConductorError(text, "INVALID_OUTPUT", {"problems": error.problems}) from error
        return self._create_result(task.task_id, TaskStatus.COMPLETED, output)

    def _input(self, task: TaskDefinition) -> Any:
        try:
            return self._kind.signature.input.read(task.input_data)
        except InvalidDataError as error:
            which = f"{task.name!r} ({task.task_id})"
            text = f"Agent {self.agent_id!r} cannot do task {which} with its input: {error}."
            details = {"problems": error.problems}
            raise AgentError(text, self.agent_id, task.task_id, "TASK_VALIDATION_FAILED", details) from error


def _error_of(result: TaskResult) -> AgentError:
    error = result.metadata.get("error")
    details = error if isinstance(error, dict) else {}
    text = result.error_message or f"The task ended as {result.status}."
    code = str(details.get("error_code") or "AGENT_ERROR")
    return AgentError(text, result.agent_id, result.task_id, code, details)
