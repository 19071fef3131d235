"""The workflow engine over nodes."""

from conductor.client import Conductor
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.broker.nodes.conftest import task
from tests.support.nodes import AgentNode


async def test_a_workflow_is_done_by_agents_on_nodes(
    conductor: Conductor, agent: AgentNode, devops: AgentNode
) -> None:
    code, deploy = task(say="code"), task("fail", AgentType.DEVOPS, say="no network")
    definition = WorkflowDefinition(name="a release", tasks=[code, deploy])
    state = await WorkflowEngine(conductor, conductor.state).run_workflow(definition)
    assert state.is_complete
    assert state.task_results[code.task_id].output_data["echo"] == "code"
    assert state.task_results[deploy.task_id].agent_id == devops.agent_id
    assert state.task_results[deploy.task_id].status is TaskStatus.FAILED
    saved = await conductor.state.get_workflow_state(definition.workflow_id)
    assert saved is not None
    assert saved.completed_task_count == saved.failed_task_count == 1
