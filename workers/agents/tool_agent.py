"""What the agents that work on a Python project have in common."""

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import TaskDefinition, TaskResult
from workers.agents.failure import WorkFailedError
from workers.agents.workspace import working_copy


class ToolAgent(BaseAgent):
    """An agent that runs tools on a copy of the project that a task names.

    Input of every task: `project`, the directory; `workspace`, optional, the directory that tasks of one
    workflow share as their copy of it. The project itself is never changed. What goes wrong is a FAILED
    result whose error_message is for a person.
    """

    agent_type_served: ClassVar[AgentType]
    exclusive: ClassVar[bool] = False
    """Whether nobody else may work in the same workspace meanwhile."""

    def __init__(self, agent_id: str, config: ConductorConfig) -> None:
        super().__init__(
            agent_id,
            self.agent_type_served,
            config,
            name=f"{self.agent_type_served.value} agent",
            description=(type(self).__doc__ or "").partition("\n")[0],
        )

    async def _validate_task(self, task: TaskDefinition) -> bool:
        return task.assigned_to in (None, self.agent_type_served)

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        try:
            output = await self._work_in_copy(task)
        except WorkFailedError as error:
            return self._create_result(task.task_id, TaskStatus.FAILED, error.output, error=str(error))
        except OSError as error:
            return self._create_result(task.task_id, TaskStatus.FAILED, {}, error=_explain(error))
        return self._create_result(task.task_id, TaskStatus.COMPLETED, output)

    async def _work_in_copy(self, task: TaskDefinition) -> dict[str, Any]:
        data = task.input_data
        project = path_input(data, "project")
        if project is None:
            raise WorkFailedError(
                "the task's input has no 'project': set it to the directory of a Python project"
            )
        _require_found(project, data["project"])
        async with self._copy(project, path_input(data, "workspace")) as root:
            return await self._work(root, data)

    def _copy(self, project: Path, workspace: Path | None) -> AbstractAsyncContextManager[Path]:
        return working_copy(project, workspace, exclusive=self.exclusive)

    @abstractmethod
    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        """Do the work in the copy at `root`; WorkFailedError where it does not succeed."""


def _require_found(project: Path, given: str) -> None:
    """Say it where a relative path leads nowhere: whoever sent it was in another directory."""
    if not given.startswith(("/", "~")) and not project.exists():
        raise WorkFailedError(
            f"there is no directory {given!r} in {Path.cwd()}, where this agent runs: "
            "set the task's input 'project' to an absolute path"
        )


def path_input(data: dict[str, Any], name: str) -> Path | None:
    """The absolute path under a name of the input; WorkFailedError for what is no path."""
    value = data.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or "\0" in value:
        raise WorkFailedError(f"the task's input '{name}' must be a path, not {value!r}")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise WorkFailedError(f"the task's input '{name}' is {value!r}: {error}") from None


def count_input(data: dict[str, Any], name: str, default: int) -> int:
    """The whole number of at least 1 under a name of the input; WorkFailedError for anything else."""
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WorkFailedError(
            f"the task's input '{name}' must be a whole number of at least 1, not {value!r}"
        )
    return value


def _explain(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason
