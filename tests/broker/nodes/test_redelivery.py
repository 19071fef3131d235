"""Messages that brokers deliver twice."""

import uuid
from collections.abc import Callable
from pathlib import Path

from conductor.broker import topology
from conductor.client import Conductor
from conductor.core.channels import RESPONSE
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.messages import AgentMessage
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

Send = Callable[[], None]


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
