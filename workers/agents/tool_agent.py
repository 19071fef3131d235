"""What the agents that work on a Python project have in common."""

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

from conductor.core.models import TaskDefinition
from workers.agents.failure import WorkFailedError
from workers.agents.inputs import path_input
from workers.agents.work_agent import WorkAgent
from workers.agents.workspace import working_copy


class ToolAgent(WorkAgent):
    """An agent that runs tools on a copy of the project that a task names.

    Input of every task: `project`, the directory; `workspace`, optional, the directory that tasks of one
    workflow share as their copy of it. The project itself is never changed.
    """

    inputs: ClassVar[tuple[str, ...]] = ("project", "workspace")
    exclusive: ClassVar[bool] = False
    """Whether nobody else may work in the same workspace meanwhile."""

    async def _do(self, task: TaskDefinition) -> dict[str, Any]:
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
