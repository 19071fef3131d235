"""What nodes write to their logs: a JSON object per line, with the ids of what it is about."""

import asyncio
import json
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest

from conductor.broker import topology
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.messages import AgentMessage, TaskAssignmentPayload
from tests.support.nodes import AgentNode, Farm
from tests.support.talking_agents import SAID, Words, talk
from tests.support.waiting import wait_until

Line = dict[str, Any]


@pytest.fixture(scope="module")
def node(farm: Farm) -> AgentNode:
    node = farm.start("talk", module="tests.support.talking_agents")
    farm.setup(node)
    return node


def lines(node: AgentNode) -> list[Line]:
    """All that the node wrote so far; each line has to be a JSON object."""
    written = node.logs()
    found = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]
    for line in found:
        assert {
            "timestamp",
            "level",
            "logger",
            "event",
            "message_id",
            "task_id",
            "workflow_id",
        } <= line.keys()
        assert line["agent_id"] == node.agent_id
        assert line["node"] == node.hostname()
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)
    return found


async def lines_of_a_task(node: AgentNode, before: int, end: str) -> list[Line]:
    """What the node wrote from the receipt of a task to its end."""

    def find() -> list[Line]:
        written = lines(node)[before:]
        starts = [i for i, line in enumerate(written) if line["event"].endswith("received")]
        ends = [i for i, line in enumerate(written) if end in line["event"]]
        return written[starts[0] : ends[-1] + 1] if starts and ends else []

    return await wait_until(find, timeout=30)


async def test_every_line_from_the_receipt_of_a_task_to_its_end_has_its_ids(
    conductor: Conductor, node: AgentNode
) -> None:
    before = len(lines(node))
    task = talk.task(Words(), metadata={"workflow_id": "w-1"})
    handle = await conductor.dispatch(task, node.agent_id)
    await handle.result(30)
    written = await lines_of_a_task(node, before, "succeeded in")
    assert [line["event"] for line in written if line["event"] in SAID] == SAID
    [message_id] = {line["message_id"] for line in written}
    assert message_id
    assert {(line["task_id"], line["workflow_id"]) for line in written} == {(task.task_id, "w-1")}
    assert len({line["process"] for line in written}) == 2  # both processes of the node had to say something
    mine = next(line for line in written if line["event"] == "by my log")
    assert (mine["level"], mine["logger"]) == ("warning", "tests.support.talking_agents")


async def test_a_failure_is_one_line_with_the_stack_as_data(conductor: Conductor, node: AgentNode) -> None:
    before = len(lines(node))
    task = talk.task(Words(fail_with='first\n{"event": "forged"}\namqp://me:hunter2@host/'))
    result = await (await conductor.dispatch(task, node.agent_id)).result(30)
    assert result.status is TaskStatus.FAILED
    written = await lines_of_a_task(node, before, "raised unexpected")
    assert {line["task_id"] for line in written} == {task.task_id}
    [failure] = [line for line in written if "failed in task" in line["event"]]
    [error] = failure["exception"]
    assert error["exc_type"] == "ValueError"
    assert error["exc_value"] == 'first\n{"event": "forged"}\namqp://me:***@host/'
    assert error["frames"][-1]["name"] == "talk"
    assert "hunter2" not in node.logs()
    assert not [line for line in lines(node) if line["event"] == "forged"]


async def test_hostile_ids_and_texts_stay_in_their_line(conductor: Conductor, node: AgentNode) -> None:
    before = len(lines(node))
    hostile = 'x"}\n{"event": "forged"}\r\u2028\x1b[2J%s'
    task = talk.task(
        Words(say=hostile), task_id=f"{node.agent_id}{hostile}", metadata={"workflow_id": hostile}
    )
    await (await conductor.dispatch(task, node.agent_id)).result(30)
    written = await lines_of_a_task(node, before, "succeeded in")
    assert {(line["task_id"], line["workflow_id"]) for line in written} == {(task.task_id, hostile)}
    assert hostile in [line["event"] for line in written]
    assert not [line for line in lines(node) if line["event"] == "forged"]


async def test_the_killing_of_a_task_that_ignores_its_cancelling_has_its_ids(
    conductor: Conductor, node: AgentNode
) -> None:
    task = talk.task(Words(be_stubborn=True), metadata={"workflow_id": "w-4"})
    handle = await conductor.dispatch(task, node.agent_id)

    def saying(text: str) -> list[Line]:
        mine = [line for line in lines(node) if line["task_id"] == task.task_id]
        return [line for line in mine if text in line["event"]]

    await wait_until(lambda: saying("by print"), timeout=30)
    await handle.cancel()
    await handle.result(30)
    [killed] = [line for line in lines(node) if "killing its process" in line["event"]]
    assert (killed["task_id"], killed["workflow_id"]) == (task.task_id, "w-4")


async def test_a_request_has_the_id_of_its_message_and_its_task(
    conductor: Conductor, node: AgentNode
) -> None:
    before = len(lines(node))
    task = talk.task(Words(), metadata={"workflow_id": "w-2"})
    message = AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT,
        sender_id="tester",
        recipient_id=node.agent_id,
        payload=TaskAssignmentPayload(task=task).model_dump(mode="json"),
    )
    await conductor.bus.request(f"conductor:agent:{node.agent_id}", message, timeout=30)
    written = await lines_of_a_task(node, before, "succeeded in")
    ids = {
        (line["message_id"], line["correlation_id"], line["task_id"], line["workflow_id"]) for line in written
    }
    assert ids == {(message.message_id, message.message_id, task.task_id, "w-2")}


async def test_an_event_has_the_id_of_its_message(conductor: Conductor, farm: Farm) -> None:
    node = farm.start("Listener", module="tests.support.talking_agents")
    farm.setup(node)
    message = AgentMessage(message_type=MessageType.FEEDBACK, sender_id="tester", payload={"say": "an event"})
    await conductor.bus.publish("conductor:broadcast", message)

    def heard() -> list[Line]:
        return [line for line in lines(node) if line["event"] == "heard an event"]

    [line] = await wait_until(heard, timeout=30)
    assert (line["message_id"], line["task_id"]) == (message.message_id, None)
    node.teardown()


async def test_a_message_that_is_no_task_has_the_ids_that_it_names(
    conductor: Conductor, node: AgentNode, farm: Farm
) -> None:
    task_id = uuid.uuid4().hex
    body = json.dumps([[{"task_id": task_id, "metadata": {"workflow_id": "w-5"}}], {"run": "r-1"}, {}])
    headers = {"lang": "py", "task": "somebody.elses", "id": task_id, "root_id": None}
    await asyncio.to_thread(publish_raw, farm, node, body, headers)

    def told() -> list[Line]:
        return [line for line in lines(node) if task_id in line["event"]]

    [letter] = await wait_until(told, timeout=30)
    [before] = [
        line
        for line in lines(node)
        if line["task_id"] == task_id and line["event"].endswith("It becomes a dead letter.")
    ]
    for line in (before, letter):
        assert (line["message_id"], line["task_id"], line["workflow_id"]) == ("r-1", task_id, "w-5")
    assert f"task {task_id} on {node.worker_queue}, INVALID_TASK" in letter["event"]
    await conductor.dead_letters.purge(letter["event"].split()[2])


async def test_what_is_no_message_to_an_agent_has_the_id_that_it_names(
    conductor: Conductor, node: AgentNode
) -> None:
    large = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="tester", payload={"text": "x" * 1_200_000}
    )
    async with KombuMessageBus(conductor.addresses.broker_url, max_message_bytes=2_000_000) as bus:
        await bus.publish(f"conductor:agent:{node.agent_id}", large)
    found = await wait_until(
        lambda: [line for line in lines(node) if "is dropped: A message has 1200" in line["event"]]
    )
    assert {line["message_id"] for line in found} == {large.message_id}


async def test_what_celery_says_past_its_logging_is_a_line_too(farm: Farm) -> None:
    node = farm.start("talk", module="tests.support.talking_agents")
    farm.setup(node)
    node.container.kill("SIGTERM")
    node.container.wait()
    assert [line for line in lines(node) if "Warm shutdown" in line["event"]]


async def test_text_is_for_those_who_ask_for_it(farm: Farm, conductor: Conductor) -> None:
    node = farm.start("talk", module="tests.support.talking_agents", CONDUCTOR_LOG_FORMAT="console")
    farm.setup(node)
    task = talk.task(Words(), metadata={"workflow_id": "w-3"})
    await (await conductor.dispatch(task, node.agent_id)).result(30)
    await wait_until(lambda: "succeeded in" in node.logs())
    [line] = [line for line in node.logs().splitlines() if "by a library" in line]
    assert f"task_id={task.task_id}" in line
    assert "workflow_id=w-3" in line
    assert "\x1b" not in node.logs()


def publish_raw(farm: Farm, node: AgentNode, body: str, headers: dict[str, Any]) -> None:
    with kombu_connection(farm.addresses.broker_url) as connection:
        queue = topology.agent_queue(node.agent_id)
        connection.Producer().publish(
            body,
            exchange=queue.exchange,
            routing_key=queue.routing_key,
            declare=[queue],
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
        )
