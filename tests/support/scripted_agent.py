"""A real agent whose work the test says."""

from collections.abc import Awaitable, Callable

from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import TaskDefinition, TaskResult

Work = Callable[["ScriptedAgent", TaskDefinition], Awaitable[TaskResult]]


async def succeed(agent: "ScriptedAgent", task: TaskDefinition) -> TaskResult:
    """Complete the task."""
    return agent.result(task)


class ScriptedAgent(BaseAgent):
    """Does `work`, and remembers the tasks it was given."""

    def __init__(
        self, agent_id: str = "coder", agent_type: AgentType = AgentType.CODING, work: Work = succeed
    ) -> None:
        super().__init__(agent_id, agent_type, ConductorConfig())
        self.work = work
        self.tasks: list[TaskDefinition] = []
        self.stops = 0

    def result(self, task: TaskDefinition, status: TaskStatus = TaskStatus.COMPLETED) -> TaskResult:
        """Make a result of this agent."""
        return self._create_result(task.task_id, status, {"by": self.agent_id})

    async def _validate_task(self, task: TaskDefinition) -> bool:
        return True

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        self.tasks.append(task)
        return await self.work(self, task)

    async def _on_stop(self) -> None:
        self.stops += 1


def failing(*errors: Exception) -> Work:
    """Raise the errors one after the other, then succeed."""
    left = list(errors)

    async def work(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        if left:
            raise left.pop(0)
        return agent.result(task)

    return work
