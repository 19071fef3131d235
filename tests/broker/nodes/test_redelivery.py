"""Messages that brokers deliver twice."""

import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import redis.asyncio as redis
from kombu import Queue

from conductor.broker import topology
from conductor.broker.records import record_key
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.channels import RESPONSE
from conductor.core.enums import AgentStatus, AgentType, MessageType, TaskStatus
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition
from conductor.core.state import AgentState
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

Send = Callable[[], None]
Starting = Callable[..., AgentNode]


async def test_a_task_that_is_delivered_twice_runs_once(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task(log=tmp_path / "log")
    send = _twice(farm, agent, "conductor.execute_task", order.task_id, [order.model_dump(mode="json")])
    send()
    result = await wait_until(lambda: conductor.state.get_task_result(order.task_id))
    assert result.status is TaskStatus.COMPLETED
    send()
    await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    assert len(notes(tmp_path / "log")) == 1


async def test_a_request_that_is_delivered_twice_is_handled_once_and_answered_twice(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    answers: list[AgentMessage] = []

    async def collect(message: AgentMessage) -> None:
        answers.append(message)

    await conductor.bus.subscribe(RESPONSE, collect)
    asked = AgentMessage(
        message_type=MessageType.FEEDBACK,
        sender_id="test",
        payload={"do": "echo", "log": str(tmp_path / "log")},
    )
    send = _twice(
        farm,
        agent,
        "conductor.handle_message",
        asked.message_id,
        [asked.model_dump(mode="json")],
        agent_id=agent.agent_id,
        reply_to=None,
    )
    send()
    send()

    def mine() -> list[AgentMessage]:
        return [answer for answer in answers if answer.correlation_id == asked.message_id]

    await wait_until(lambda: len(mine()) == 2)
    assert mine()[0] == mine()[1]
    assert len(notes(tmp_path / "log")) == 1


def _twice(
    farm: Farm, agent: AgentNode, name: str, task_id: str, args: list[object], **kwargs: object
) -> Send:
    """Make a function that puts one and the same message into the agent's queue."""
    app = farm.app
    kwargs["run"] = uuid.uuid4().hex
    queue = topology.agent_queue(agent.agent_id)

    def send() -> None:
        app.send_task(name, args=args, kwargs=kwargs, task_id=task_id, queue=queue)

    return send


async def test_a_run_that_comes_twice_does_not_run_on_two_nodes_at_once(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    nodes = [starting("SecondAgent"), starting("SecondAgent")]
    farm.setup(*nodes)
    log, go = tmp_path / "log", tmp_path / "go"
    order = task("wait_for_file", AgentType.REVIEW, file=go, log=log)
    send = _twice_to(farm, topology.type_queue(AgentType.REVIEW), order)
    send()
    (first,) = await wait_until(lambda: notes(log))
    send()
    await wait_until(lambda: any("came once more" in node.logs() for node in nodes))
    go.touch()
    result = await (await conductor.handle(order.task_id)).result(20)
    assert (result.status, result.agent_id) == (TaskStatus.COMPLETED, first["agent"])
    for node in nodes:
        await (await conductor.dispatch(task(), node.agent_id)).result(20)
    assert len(notes(log)) == 1
    assert await conductor.dead_letters.get(order.task_id) is None


async def test_a_message_that_looks_like_a_second_one_is_not_lost(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    """Somebody says that it works on the task, and then is heard of no more; no other message is left."""
    order, run = task(log=tmp_path / "log"), uuid.uuid4().hex
    other = await _busy_with(conductor, farm, order, run)
    _twice_to(farm, topology.agent_queue(agent.agent_id), order, run=run)()
    await wait_until(lambda: f"Task {order.task_id} came once more" in agent.logs())
    await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    assert not notes(tmp_path / "log")
    await conductor.state.delete_agent_state(other)
    result = await (await conductor.handle(order.task_id)).result(20)
    assert (result.status, len(notes(tmp_path / "log"))) == (TaskStatus.COMPLETED, 1)


async def test_a_message_that_somebody_had_before_runs_at_once(
    conductor: Conductor, starting: Starting, farm: Farm, tmp_path: Path
) -> None:
    """Who had it may still be heard of: another process of that agent."""
    order, run, agent_id = task(log=tmp_path / "log"), uuid.uuid4().hex, f"late-{uuid.uuid4().hex[:8]}"
    await _busy_with(conductor, farm, order, run)
    queue = topology.agent_queue(agent_id)
    _twice_to(farm, queue, order, run=run)()
    with kombu_connection(farm.addresses.broker_url) as connection:
        message = queue(connection.default_channel).get(no_ack=False)
        message.requeue()
    node = starting("SecondAgent", agent_id)
    farm.setup(node)
    result = await (await conductor.handle(order.task_id)).result(20)
    assert (result.status, len(notes(tmp_path / "log"))) == (TaskStatus.COMPLETED, 1)
    assert "came once more" not in node.logs()


async def _busy_with(conductor: Conductor, farm: Farm, order: TaskDefinition, run: str) -> str:
    """File an agent, and give its id, that works on a run of a task."""
    other = AgentState(
        agent_id=f"other-{run}",
        agent_type=AgentType.CODING,
        status=AgentStatus.RUNNING,
        current_task_id=order.task_id,
        last_heartbeat=utc_now() + timedelta(minutes=1),
    )
    await conductor.state.save_agent_state(other)
    async with redis.Redis.from_url(farm.addresses.redis_url) as store:
        started = {"status": "STARTED", "worker": f"{other.agent_id}@test", "kwargs": {"run": run}}
        await store.set(record_key(order.task_id), json.dumps(started | {"task_id": order.task_id}))
    return other.agent_id


def _twice_to(farm: Farm, queue: Queue, order: TaskDefinition, run: str | None = None) -> Send:
    """Make a function that puts one and the same task into a queue."""
    app, kwargs = farm.app, {"run": run or uuid.uuid4().hex}

    def send() -> None:
        args = [order.model_dump(mode="json")]
        app.send_task("conductor.execute_task", args=args, kwargs=kwargs, task_id=order.task_id, queue=queue)

    return send
