"""What the agents that come with Conductor have in common."""

from abc import abstractmethod
from typing import Any, ClassVar

from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import TaskDefinition, TaskResult
from workers.agents.failure import WorkFailedError
from workers.agents.inputs import require_known


class WorkAgent(BaseAgent):
    """An agent of one type; what goes wrong is a FAILED result whose error_message is for a person."""

    agent_type_served: ClassVar[AgentType]
    inputs: ClassVar[tuple[str, ...]]
    """The inputs it takes, beside the `feedback` that every task has whose workflow was sent back."""

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
            require_known(task.input_data, dict.fromkeys((*self.inputs, "feedback")))
            output = await self._do(task)
        except WorkFailedError as error:
            return self._create_result(task.task_id, TaskStatus.FAILED, error.output, error=str(error))
        except OSError as error:
            return self._create_result(task.task_id, TaskStatus.FAILED, {}, error=_explain(error))
        return self._create_result(task.task_id, TaskStatus.COMPLETED, output)

    @abstractmethod
    async def _do(self, task: TaskDefinition) -> dict[str, Any]:
        """Do the work and give its output; WorkFailedError where it does not succeed."""


def _explain(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason
