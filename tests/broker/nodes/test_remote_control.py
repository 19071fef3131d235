"""What `celery control` may do to a node that hosts an agent, and what not."""

import asyncio

import pytest

from conductor.client import Conductor
from conductor.core.enums import TaskStatus
from tests.broker.nodes.conftest import echo, task
from tests.support.nodes import AgentNode, Farm, run_celery


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["pool_grow", "2"], "one process for its agents"),
        (["pool_shrink"], "one process for its agents"),
        (["add_consumer", "conductor.type.review"], "the queues of its agents and no others"),
        (["cancel_consumer", "conductor.type.coding"], "consumes all queues of its agents"),
        (["rate_limit", "conductor.execute_task", "1/h"], "to limit their rate, use policies"),
        (["time_limit", "conductor.execute_task", "0.01", "0.01"], "the timeout of each task"),
        (["autoscale", "3", "1"], "Autoscale not enabled"),
    ],
)
async def test_what_would_break_a_node_is_refused_and_it_works_on(
    farm: Farm, conductor: Conductor, agent: AgentNode, command: list[str], sentence: str
) -> None:
    processes = agent.container.children()
    to_agent = ["control", "--timeout", "10", "-d", agent.hostname(), *command]
    done = await asyncio.to_thread(run_celery, *to_agent, environment=farm.environment())
    assert sentence in " ".join(done.stdout.split()), done.stdout + done.stderr
    await echo(conductor, agent)
    queues = await asyncio.to_thread(farm.app.control.inspect([agent.hostname()], 10).active_queues)
    assert {queue["name"] for queue in queues[agent.hostname()]} == {
        agent.worker_queue,
        "conductor.type.coding",
    }
    assert agent.container.children() == processes


async def test_a_node_counts_tasks_by_type_whatever_their_names(
    farm: Farm, conductor: Conductor, agent: AgentNode
) -> None:
    for number in range(3):
        order = task().model_copy(update={"name": f"one of a kind {number}"})
        result = await (await conductor.dispatch(order, agent.agent_id)).result(20)
        assert result.status is TaskStatus.COMPLETED
    stats = await asyncio.to_thread(farm.app.control.inspect([agent.hostname()], 10).stats)
    total = stats[agent.hostname()]["total"]
    assert total["conductor.execute_task"] >= 3
    assert not [name for name in total if not name.startswith("conductor.")]
