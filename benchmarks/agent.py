"""The agent of the benchmark."""

from benchmarks.load import run_task
from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType
from conductor.core.models import TaskDefinition, TaskResult


class EchoAgent(BaseAgent):
    """Gives the input back."""

    def __init__(self, agent_id: str, config: ConductorConfig) -> None:
        super().__init__(agent_id, AgentType.CODING, config)

    async def _validate_task(self, task: TaskDefinition) -> bool:
        return True

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        return run_task(task, self.agent_id)
