"""What becomes of what is in a node's queues and is no task that it could do."""

import asyncio
import json
import uuid
from typing import Any

import pytest
import redis.asyncio as redis
from celery.result import AsyncResult

from conductor.broker import topology
from conductor.broker.dead_letters import decode_body
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.dead_letters import DeadLetter
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, MessageBusError
from conductor.core.messages import AgentMessage
from tests.broker.nodes.conftest import echo, letters_of, task
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

HEADERS = {"lang": "py", "task": "conductor.execute_task", "root_id": None, "parent_id": None}
MIB = 1024 * 1024
JSON, YEAR_10000 = "application/json", "9999-12-31T23:59:59.999999-12:00"
QUESTION = AgentMessage(
    message_type=MessageType.FEEDBACK, sender_id="test", payload={"do": "echo", "say": "yes"}
).model_dump(mode="json")
TASK = task().model_dump(mode="json")


def body(args: Any = (TASK,), kwargs: Any = {}, embedded: Any = {}) -> str:  # noqa: B006 - only read
    """The body of a task, which is a good one by default."""
    return json.dumps([args, kwargs, embedded])


BODIES = {
    "no JSON": "{not json",
    "no list": '{"a": 1}',
    "a text": '"text"',
    "many brackets": "[" * 2000,
    "many nested lists": body([TASK, json.loads("[" * 900 + "]" * 900)]),
    "many nested lists in the task": body([{**TASK, "input_data": {"a": json.loads("[" * 230 + "]" * 230)}}]),
    "no arguments": body([]),
    "a bad definition": body([{"name": ""}]),
    "too many arguments": body([None] * 9),
    "arguments that are a number": body(5),
    "no keywords": body(kwargs=None),
    "keywords that are a list": body(kwargs=[1]),
    "an argument twice": body(kwargs={"task": TASK}),
    "a run that is a list": body(kwargs={"run": [1]}),
    "a run that is no text": body(kwargs={"run": "\ud800"}),
    "a number embedded": body(embedded=5),
    "a chord that is a number": body(embedded={"chord": 5}),
    "callbacks that are a number": body(embedded={"callbacks": 5}),
    "another id embedded": body(embedded={"id": "other"}),
}
BAD_HEADERS = [
    ("task", "somebody.elses"),
    ("task", "\ud800"),
    ("task", {"a": 1}),
    ("retries", "x"),
    ("retries", -1),
    ("timelimit", ["a", "b"]),
    ("timelimit", [5, -1]),
    ("timelimit", [float("nan"), 1]),
    ("timelimit", [1e300, None]),
    ("timelimit", [None]),
    ("timelimit", 5),
    ("timelimit", {"a": 1, "b": 2}),
    ("eta", "tomorrow"),
    ("eta", YEAR_10000),
    ("eta", "0001-01-01T00:00:00+14:00"),
    ("expires", "tomorrow"),
    ("stamped_headers", 5),
    ("chord", 5),
    ("headers", 5),
    ("root_id", {"a": 1}),
    ("argsrepr", "\ud800"),
    ("group", [1]),
]


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
async def test_what_is_no_task_is_kept_and_the_node_works_on(
    conductor: Conductor, agent: AgentNode, farm: Farm, text: str
) -> None:
    await _is_kept(conductor, agent, farm, text)


@pytest.mark.parametrize(("name", "value"), BAD_HEADERS)
async def test_a_task_with_a_bad_header_is_kept_and_the_node_works_on(
    conductor: Conductor, agent: AgentNode, farm: Farm, name: str, value: Any
) -> None:
    if "nan" in repr(value) and farm.addresses.broker_url.startswith("amqp"):
        pytest.skip("RabbitMQ has no such number")
    await _is_kept(conductor, agent, farm, body(), {name: value})


async def test_a_pickle_is_kept_and_the_node_works_on(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    await _is_kept(conductor, agent, farm, b"\x80\x04N.", content_type="application/x-python-serialize")


async def test_a_task_that_is_too_large_is_refused_when_it_is_sent(
    conductor: Conductor, agent: AgentNode
) -> None:
    large = task(say="x" * MIB)
    with pytest.raises(MessageBusError, match=r"bus\.max_message_bytes") as caught:
        await conductor.dispatch(large, agent.agent_id)
    assert caught.value.error_code == "MESSAGE_TOO_LARGE"
    with pytest.raises(AgentError):
        await conductor.handle(large.task_id)


@pytest.mark.parametrize("size", [MIB + 5000, 5 * MIB])
async def test_a_task_that_is_too_large_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm, size: int
) -> None:
    task_id = uuid.uuid4().hex
    text = body([{**TASK, "input_data": {"do": "echo", "say": "x" * size}}])
    headers = {**HEADERS, "id": task_id}
    await asyncio.to_thread(_publish, farm, agent.agent_id, text, headers, JSON)
    (letter,) = await wait_until(lambda: letters_of(conductor, task_id))
    await echo(conductor, agent)
    assert (letter.reason, letter.error_code) == ("refused", "MESSAGE_TOO_LARGE")
    assert letter.body == text
    await conductor.dead_letters.purge(letter.letter_id)


@pytest.mark.parametrize("say", ["x", "é", "𝄞", '"'])
async def test_a_task_that_is_just_not_too_large_is_done(
    conductor: Conductor, agent: AgentNode, say: str
) -> None:
    text = say * ((MIB - 5000) // len(json.dumps(say, ensure_ascii=False)[1:-1].encode()))
    handle = await conductor.dispatch(task(say=text), agent.agent_id)
    assert (await handle.result(30)).output_data["echo"] == text


async def test_a_task_may_be_nested_deeply(conductor: Conductor, agent: AgentNode) -> None:
    say = json.loads("[" * 180 + "]" * 180)
    result = await (await conductor.dispatch(task(say=say), agent.agent_id)).result(20)
    assert result.output_data["echo"] == say


async def test_headers_that_fill_a_frame_are_kept_and_replayed(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    task_id, many = uuid.uuid4().hex, {"note": "n" * 100_000, "numbers": list(range(2000))}
    headers = {**HEADERS, "task": "somebody.elses", "id": task_id, **many}
    await asyncio.to_thread(_publish, farm, agent.agent_id, body(), headers, JSON)
    (letter,) = await wait_until(lambda: letters_of(conductor, task_id))
    assert (letter.body, letter.headers | headers) == (body(), letter.headers)
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    (again,) = await wait_until(lambda: letters_of(conductor, task_id))
    assert (again.body, again.headers | headers) == (body(), again.headers)
    assert again.letter_id != letter.letter_id


@pytest.mark.parametrize("task_id", [5, [1], "", None, "\ud800"])
async def test_a_task_whose_id_is_no_text_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm, task_id: Any
) -> None:
    mark = uuid.uuid4().hex
    text = body(kwargs={"run": mark})
    await asyncio.to_thread(_publish, farm, agent.agent_id, text, {**HEADERS, "id": task_id}, JSON)
    letter = await wait_until(lambda: _letter_with(conductor, mark))
    await echo(conductor, agent)
    assert (letter.reason, letter.queue) == ("undecodable", agent.worker_queue)


@pytest.mark.parametrize("name", ["agent_id", "reply_to", "run"])
@pytest.mark.parametrize("value", [5, [1], "\ud800"])
async def test_a_request_with_a_bad_argument_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm, name: str, value: Any
) -> None:
    text = body([QUESTION], {"agent_id": agent.agent_id, name: value})
    await _is_kept(conductor, agent, farm, text, {"task": "conductor.handle_message"})


async def test_a_request_needs_no_time_limit(agent: AgentNode, farm: Farm) -> None:
    request_id = uuid.uuid4().hex
    headers = {**HEADERS, "task": "conductor.handle_message", "id": request_id, "timelimit": None}
    text = body([QUESTION], {"agent_id": agent.agent_id})
    await asyncio.to_thread(_publish, farm, agent.agent_id, text, headers, JSON)
    answer = await asyncio.to_thread(AsyncResult(request_id, app=farm.app).get, 20)
    assert answer["payload"]["echo"] == "yes"


async def test_an_expiry_after_the_last_year_is_one(agent: AgentNode, farm: Farm) -> None:
    task_id = uuid.uuid4().hex
    headers = {**HEADERS, "id": task_id, "expires": YEAR_10000}
    await asyncio.to_thread(_publish, farm, agent.agent_id, body(), headers, JSON)
    result = await asyncio.to_thread(AsyncResult(task_id, app=farm.app).get, 20)
    assert result["status"] == "completed"


async def test_a_message_without_any_header_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    mark = uuid.uuid4().hex
    await asyncio.to_thread(_publish, farm, agent.agent_id, f"hello {mark}", {}, "text/plain")
    letter = await wait_until(lambda: _letter_with(conductor, mark))
    assert (letter.reason, letter.body) == ("undecodable", f"hello {mark}")


async def test_messages_without_an_id_for_an_agent_that_is_forgotten_are_each_kept(
    conductor: Conductor, farm: Farm
) -> None:
    nobody, marks = f"nobody-{uuid.uuid4().hex[:8]}", [uuid.uuid4().hex for _ in range(2)]
    for mark in marks:
        await asyncio.to_thread(_publish, farm, nobody, mark, {}, JSON)
    await conductor.forget_agents([nobody])
    letters = [await _letter_with(conductor, mark) for mark in marks]
    assert [letter and letter.reason for letter in letters] == ["unknown_agent"] * 2


@pytest.mark.parametrize(
    "item",
    [
        "rubbish",
        '{"body": 5, "headers": {}, "properties": PROPERTIES}',
        '{"body": "abc", "headers": [1], "properties": PROPERTIES}',
        '{"body": "abc", "headers": null, "properties": PROPERTIES}',
        '{"body": "abc", "headers": {}, "properties": PROPERTIES}',
    ],
)
async def test_an_item_that_is_no_message_of_kombus_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm, item: str
) -> None:
    if farm.addresses.broker_url.startswith("amqp"):
        pytest.skip("RabbitMQ takes messages only")
    mark = uuid.uuid4().hex
    place = {"exchange": topology.WORK, "routing_key": agent.worker_queue}
    properties = {"body_encoding": "base64", "delivery_tag": mark, "delivery_info": place}
    raw = item.replace("PROPERTIES", json.dumps(properties))
    async with redis.Redis.from_url(farm.addresses.broker_url) as client:
        await client.lpush(agent.worker_queue, raw.replace("rubbish", mark))
    letter = await wait_until(lambda: _letter_with(conductor, mark))
    await echo(conductor, agent)
    assert (letter.reason, letter.queue) == ("undecodable", agent.worker_queue)
    letters = await conductor.dead_letters.list(limit=None)
    assert len([one for one in letters if _in_base64(mark, one)]) == 1


async def _is_kept(
    conductor: Conductor,
    agent: AgentNode,
    farm: Farm,
    text: bytes | str,
    changes: dict[str, Any] | None = None,
    content_type: str = JSON,
) -> None:
    """Send a message: it becomes one dead letter, its failure is told, and the node does the next task."""
    task_id = str(uuid.uuid4())
    headers = {**HEADERS, "id": task_id, **(changes or {})}
    await asyncio.to_thread(_publish, farm, agent.agent_id, text, headers, content_type)
    await echo(conductor, agent)
    (letter,) = await wait_until(lambda: letters_of(conductor, task_id))
    assert (letter.reason, letter.queue) == ("undecodable", agent.worker_queue)
    result = await (await conductor.handle(task_id)).result(5)
    assert (result.status, result.error_message) == (TaskStatus.FAILED, letter.error_message)
    assert result.error_message


async def _letter_with(conductor: Conductor, mark: str) -> DeadLetter | None:
    found = await conductor.dead_letters.list(limit=None)
    return next((letter for letter in found if mark in letter.body or _in_base64(mark, letter)), None)


def _in_base64(mark: str, letter: DeadLetter) -> bool:
    return mark.encode() in decode_body(letter)


def _publish(
    farm: Farm, agent_id: str, body: bytes | str, headers: dict[str, Any], content_type: str
) -> None:
    connection = kombu_connection(farm.addresses.broker_url)
    with connection:
        queue = topology.agent_queue(agent_id)
        connection.Producer().publish(
            body if isinstance(body, bytes) else body.encode(),
            exchange=queue.exchange,
            routing_key=queue.name,
            declare=[queue],
            headers=headers,
            content_type=content_type,
            content_encoding="binary" if isinstance(body, bytes) else "utf-8",
        )
