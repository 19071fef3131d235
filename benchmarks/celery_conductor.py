"""Conductor's own Celery application with one plain task more; it reads Conductor's environment."""

from benchmarks.load import run_task
from conductor.broker import topology
from conductor.broker.app import create_app
from conductor.core.models import TaskDefinition, TaskResult

AGENT_ID = "benchmark-agent"
TASK = "benchmark.echo"

app = create_app(set_as_current=False)


# A node consumes the queues of its agents and no others.
@app.task(name=TASK, pydantic=True, shared=False, queue=topology.agent_queue(AGENT_ID))  # type: ignore[misc]
def echo(task: TaskDefinition) -> TaskResult:
    """Do the small task without an agent."""
    return run_task(task, AGENT_ID)
