"""Queues that somebody deletes while others go on to use them: no task and no dead letter vanishes."""

import uuid
from collections.abc import Callable

from kombu import Queue

from conductor.broker import topology
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.config import ErrorsConfig
from conductor.core.enums import TaskStatus
from tests.broker.nodes.conftest import task
from tests.support.letters import filed_letters
from tests.support.nodes import AgentNode, Farm


def _delete(farm: Farm, queue: Queue) -> None:
    with kombu_connection(farm.addresses.broker_url) as connection:
        bound = queue(connection.default_channel)
        bound.declare()  # on Redis kombu deletes only what it knows the bindings of
        bound.delete()


async def test_an_agent_that_was_forgotten_gets_what_is_sent_to_it_later(
    conductor: Conductor, starting: Callable[..., AgentNode], farm: Farm
) -> None:
    agent_id = f"again-{uuid.uuid4().hex[:8]}"
    forgotten = await conductor.dispatch(task(), agent_id)
    # Nodes that run would put the tasks aside if the agent's took longer to start.
    patient = farm.config.model_copy(update={"errors": ErrorsConfig(unknown_agent_seconds=120)})
    async with Conductor(patient) as elsewhere:
        await elsewhere.forget_agents([agent_id])
        assert (await forgotten.result(20)).status is TaskStatus.FAILED
        handles = [await elsewhere.dispatch(task(), agent_id) for _ in range(2)]
        farm.setup(starting("ThirdAgent", agent_id))
        results = [await handle.result(20) for handle in handles]
    assert [result.status for result in results] == [TaskStatus.COMPLETED] * 2


async def test_failures_have_letters_after_the_queue_of_letters_was_deleted(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    async def fails() -> str:
        handle = await conductor.dispatch(task("fail"), agent.agent_id)
        assert (await handle.result(20)).status is TaskStatus.FAILED
        return handle.task_id

    await fails()
    _delete(farm, topology.dead_letter_queue())
    failed = [await fails() for _ in range(2)]
    assert [letter.task_id for letter in filed_letters(farm.addresses.broker_url)] == failed


async def test_a_node_whose_queue_was_deleted_gets_what_is_sent_to_it_later(
    conductor: Conductor, starting: Callable[..., AgentNode], farm: Farm
) -> None:
    node = starting("ThirdAgent")
    farm.setup(node)
    assert (await (await conductor.dispatch(task(), node.agent_id)).result(20)).status is TaskStatus.COMPLETED
    _delete(farm, topology.agent_queue(node.agent_id))
    handle = await conductor.dispatch(task(), node.agent_id)
    assert (await handle.result(20)).status is TaskStatus.COMPLETED
