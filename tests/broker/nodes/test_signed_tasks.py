"""With keys a node does only what somebody with a key sent, and once."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from conductor.broker.addresses import Addresses
from conductor.broker.app import create_app
from conductor.broker.node_control import CANCEL_TASK
from conductor.broker.topology import EVENTS
from conductor.broker.transport import is_rabbitmq, kombu_connection
from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.config import SigningConfig
from conductor.core.dead_letters import DeadLetter
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition
from tests.broker.nodes.conftest import SETTINGS, echo, task
from tests.broker.nodes.test_hostile_publications import DEEP, envelope, on_redis, publish
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

OLD, NEW = "old-" + "a" * 32, "new-" + "b" * 32
BOTH = {"old": OLD, "new": NEW}


def signing(key_id: str, keys: dict[str, str], *, accept_unsigned: bool = False) -> str:
    """The setting, as in the environment of a node."""
    return json.dumps({"keys": keys, "key_id": key_id, "accept_unsigned": accept_unsigned})


def client(farm: Farm, signed: str | None) -> Conductor:
    """A client with other keys than a node may have."""
    found = SigningConfig() if signed is None else SigningConfig.model_validate_json(signed)
    errors = farm.config.errors.model_copy(update={"unknown_agent_seconds": 600})
    return Conductor(farm.config.model_copy(update={"signing": found, "errors": errors}))


@dataclass(frozen=True)
class Copy:
    """A message as somebody reads it who has the broker and no key."""

    queue: str
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]

    def send(self, farm: Farm) -> None:
        with kombu_connection(farm.addresses.broker_url) as connection:
            connection.Producer().publish(
                self.body,
                routing_key=self.queue,
                headers=self.headers,
                content_type="application/json",
                content_encoding="utf-8",
                **self.properties,
            )

    def under(self, **headers: Any) -> "Copy":
        return replace(self, headers=self.headers | headers)


def look(farm: Farm, queue: str) -> Copy:
    """Copy the message that waits in a queue."""
    with kombu_connection(farm.addresses.broker_url) as connection, connection.channel() as channel:
        message = channel.basic_get(queue)
        assert message is not None
        message = message if hasattr(message, "requeue") else channel.message_to_python(message)
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        properties = {name: message.properties.get(name) for name in ("reply_to", "correlation_id")}
        headers = dict(message.headers)
        message.requeue()
    return Copy(queue, body, headers, properties)


async def refused(conductor: Conductor, task_id: str, code: str) -> DeadLetter:
    async def found() -> DeadLetter | None:
        letters = await conductor.dead_letters.list(limit=None)
        return next((one for one in letters if (one.task_id, one.error_code) == (task_id, code)), None)

    return await wait_until(found, 30)


@pytest.fixture(scope="module", params=["valkey", "rabbitmq", "quorum"])
def farm(
    request: pytest.FixtureRequest, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    """A place of its own, where only nodes with keys are."""
    server = valkey_url.rpartition("/")[0]
    if request.param == "valkey":
        addresses = Addresses(f"{server}/12", f"{server}/12")
    else:
        addresses = Addresses(request.getfixturevalue(f"{request.param}_url"), f"{server}/13")
    settings = SETTINGS | {"CONDUCTOR_SIGNING": signing("old", {"old": OLD})}
    farm = Farm(addresses, tmp_path_factory.mktemp(f"signed-{request.param}"), settings)
    yield farm
    farm.teardown()


@pytest.fixture(scope="module")
def agent(farm: Farm) -> AgentNode:
    """A node that takes nothing unsigned."""
    node = farm.start("ObedientAgent")
    farm.setup(node)
    return node


@pytest.fixture
async def conductor(farm: Farm) -> AsyncIterator[Conductor]:
    """A client with the key."""
    async with client(farm, signing("old", {"old": OLD})) as conductor:
        yield conductor


@pytest.fixture
async def done(
    conductor: Conductor, farm: Farm, starting: Callable[..., AgentNode], tmp_path: Path
) -> tuple[Copy, TaskDefinition, AgentNode]:
    """A task that was copied while it waited for its node, and then done."""
    order, name = task(log=tmp_path / "log"), f"late-{uuid.uuid4().hex[:8]}"
    handle = await conductor.dispatch(order, name)
    copy = await asyncio.to_thread(look, farm, f"conductor.agent.{name}")
    node = starting("ObedientAgent", name)
    assert (await handle.result(60)).status is TaskStatus.COMPLETED
    return copy, order, node


async def test_forged_altered_and_repeated_tasks_are_refused(
    conductor: Conductor, done: tuple[Copy, TaskDefinition, AgentNode], farm: Farm, tmp_path: Path
) -> None:
    copy, order, node = done
    bare = {name: value for name, value in copy.headers.items() if not name.startswith("conductor_")}
    forgeries = [
        ("MESSAGE_UNSIGNED", replace(copy, headers=bare)),
        ("MESSAGE_ALTERED", replace(copy, body=copy.body.replace(b'"echo"', b'"fail"'))),
        ("MESSAGE_ALTERED", copy.under(retries=1)),
        ("MESSAGE_ALTERED", copy.under(conductor_time="9e9")),
        ("MESSAGE_ALTERED", copy.under(conductor_nonce=uuid.uuid4().hex)),
        ("MESSAGE_ALTERED", copy.under(conductor_signature=None)),
        ("MESSAGE_ALTERED", replace(copy, properties=copy.properties | {"reply_to": "me"})),
        ("MESSAGE_UNKNOWN_KEY", copy.under(conductor_key="mine")),
        ("MESSAGE_REPLAYED", copy),
    ]
    for code, forged in forgeries:
        await asyncio.to_thread(forged.send, farm)
        letter = await refused(conductor, order.task_id, code)
        assert letter.reason == "refused"
        await conductor.dead_letters.purge(letter.letter_id)
    assert (await (await conductor.handle(order.task_id)).result(5)).status is TaskStatus.COMPLETED
    assert len(notes(tmp_path / "log")) == 1
    assert OLD not in node.logs()


async def test_a_signed_task_is_refused_in_another_queue(
    conductor: Conductor, done: tuple[Copy, TaskDefinition, AgentNode], agent: AgentNode, farm: Farm
) -> None:
    copy, order, _ = done
    await asyncio.to_thread(replace(copy, queue=agent.worker_queue).send, farm)
    await refused(conductor, order.task_id, "MESSAGE_ALTERED")


async def test_a_signed_task_that_is_moved_to_another_queue_is_refused(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    if is_rabbitmq(farm.addresses.broker_url):
        pytest.skip("on RabbitMQ the server says which queue a message is in")
    order, nobody = task(log=tmp_path / "log"), f"nobody-{uuid.uuid4().hex[:8]}"
    await conductor.dispatch(order, nobody)
    with redis.Redis.from_url(farm.addresses.broker_url) as client:
        assert client.rpoplpush(f"conductor.agent.{nobody}", agent.worker_queue)
    await refused(conductor, order.task_id, "MESSAGE_ALTERED")
    assert not (tmp_path / "log").exists()


async def test_what_might_arrive_as_something_else_is_not_signed(conductor: Conductor) -> None:
    app = create_app(conductor.config, addresses=conductor.addresses, set_as_current=False)
    with pytest.raises(MessageBusError, match="datetime") as raised:
        app.send_task("conductor.execute_task", headers={"since": datetime.now(UTC)})
    assert raised.value.error_code == "INVALID_MESSAGE"


async def test_a_forgery_does_not_fail_the_task_it_names(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order, agent.agent_id)
    await wait_until(lambda: notes(tmp_path / "log"), 60)
    forged = {"lang": "py", "task": "conductor.execute_task", "id": order.task_id}
    await asyncio.to_thread(Copy(agent.worker_queue, b"{no json", forged, {}).send, farm)
    (tmp_path / "go").touch()
    assert (await handle.result(30)).status is TaskStatus.COMPLETED
    await refused(conductor, order.task_id, "MESSAGE_UNSIGNED")


async def test_what_a_client_without_keys_sends_is_a_letter_that_one_with_keys_can_replay(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task(log=tmp_path / "log")
    async with client(farm, None) as stranger:
        await stranger.dispatch(order, agent.agent_id)
        letter = await refused(stranger, order.task_id, "MESSAGE_UNSIGNED")
    assert not (tmp_path / "log").exists()
    # The run that nobody did has not ended for those who wait for it.
    await conductor.cancel_task(order.task_id)
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    assert (await (await conductor.handle(order.task_id)).result(30)).status is TaskStatus.COMPLETED


async def test_what_is_tried_again_is_signed_by_the_node(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    order = task("fail_with", code="LLM_TIMEOUT", times=2, log=tmp_path / "log")
    result = await (await conductor.dispatch(order, agent.agent_id)).result(30)
    assert (result.status, result.output_data["attempts"]) == (TaskStatus.COMPLETED, 3)


async def test_a_request_becomes_a_task_that_the_node_signs(conductor: Conductor, agent: AgentNode) -> None:
    question = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="test", payload={"do": "echo", "say": "yes"}
    )
    answer = await conductor.bus.request(agent_channel(agent.agent_id), question, timeout=30)
    assert answer.message_type is not MessageType.ERROR


async def test_a_task_is_done_again_when_its_node_was_killed(
    conductor: Conductor, farm: Farm, starting: Callable[..., AgentNode], tmp_path: Path
) -> None:
    name = f"twice-{uuid.uuid4().hex[:8]}"
    node = starting("ObedientAgent", name)
    order = task("wait_for_file", file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order, name)
    await wait_until(lambda: notes(tmp_path / "log"), 60)
    await asyncio.to_thread(node.kill)
    starting("ObedientAgent", name)
    await wait_until(lambda: len(notes(tmp_path / "log")) == 2, 60)
    (tmp_path / "go").touch()
    assert (await handle.result(30)).status is TaskStatus.COMPLETED


async def test_commands_without_a_key_are_refused(
    conductor: Conductor, farm: Farm, starting: Callable[..., AgentNode]
) -> None:
    name = f"obeying-{uuid.uuid4().hex[:8]}"
    node = starting("ObedientAgent", name)
    await asyncio.to_thread(node.ready)
    stranger, owner = farm.app, create_app(conductor.config, addresses=farm.addresses, set_as_current=False)
    there = [node.hostname()]
    await asyncio.to_thread(stranger.control.shutdown, destination=there)
    letter = await wait_until(lambda: command_refused(conductor, "MESSAGE_UNSIGNED"), 30)
    assert json.loads(letter.body)["method"] == "shutdown"
    answered = await asyncio.to_thread(owner.control.ping, destination=there, timeout=10)
    assert answered == [{node.hostname(): {"ok": "pong"}}]
    await asyncio.to_thread(
        stranger.control.broadcast, CANCEL_TASK, arguments={"task_id": "t-1"}, destination=there
    )
    assert (await (await conductor.dispatch(task(), name)).result(30)).status is TaskStatus.COMPLETED
    await wait_until(lambda: node.logs().count("A command is refused") == 2, 30)
    refusals = [json.loads(line) for line in node.logs().splitlines() if "A command is refused" in line]
    assert [line["task_id"] for line in refusals] == [None, "t-1"]
    await asyncio.to_thread(owner.control.shutdown, destination=there)
    assert await asyncio.to_thread(node.container.wait) == 0


async def command_refused(conductor: Conductor, code: str) -> DeadLetter | None:
    letters = await conductor.dead_letters.list(limit=None)
    found = (one for one in letters if (one.channel, one.error_code) == ("conductor.pidbox.pidbox", code))
    return next(found, None)


async def test_what_nobody_with_a_key_published_reaches_no_agent(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    channel = agent_channel(agent.agent_id)
    stop = AgentMessage(message_type=MessageType.CONTROL, sender_id="x", payload={"command": "stop"})
    order = task(log=tmp_path / "log")
    assignment = AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT,
        sender_id="x",
        payload={"task": order.model_dump(mode="json")},
    )
    async with client(farm, None) as stranger:
        for forged in (stop, assignment):
            await stranger.bus.publish(channel, forged)

            async def letters(message_id: str = forged.message_id) -> list[DeadLetter]:
                found = await conductor.dead_letters.list(limit=None)
                return [letter for letter in found if letter.message_id == message_id]

            [letter] = await wait_until(letters, 30)
            assert (letter.channel, letter.error_code) == (channel, "MESSAGE_UNSIGNED")
    # What is done after them was sent after them.
    handle = await conductor.dispatch(task(), agent.agent_id)
    assert (await handle.result(30)).status is TaskStatus.COMPLETED
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "changes", [{"reply_to": "5"}, {"correlation_id": "[1]"}, {"headers": DEEP}], ids=str
)
async def test_a_node_with_keys_drops_what_is_no_message(
    conductor: Conductor, agent: AgentNode, farm: Farm, changes: dict[str, str | None]
) -> None:
    url, channel = on_redis(farm), agent_channel(agent.agent_id)
    stamp = {
        "conductor_key": "old",
        "conductor_time": "1",
        "conductor_nonce": "a.1",
        "conductor_signature": "0",
    }
    raw = envelope(EVENTS, channel, {"headers": json.dumps(stamp)} | changes)
    assert await asyncio.to_thread(publish, url, EVENTS, channel, raw)
    await echo(conductor, agent)


async def test_keys_are_exchanged_in_the_order_of_the_manual(
    farm: Farm, starting: Callable[..., AgentNode]
) -> None:
    clients = [signing("old", {"old": OLD}), signing("old", BOTH), signing("new", BOTH)]
    clients.append(signing("new", {"new": NEW}))
    name = f"turning-{uuid.uuid4().hex[:8]}"
    node = starting("ObedientAgent", name, CONDUCTOR_SIGNING=signing("old", BOTH))
    for setting in clients:
        async with client(farm, setting) as conductor:
            assert (await (await conductor.dispatch(task(), name)).result(60)).status is TaskStatus.COMPLETED
    assert not any(key in node.logs() for key in (OLD, NEW))


async def test_unsigned_tasks_are_taken_while_that_is_allowed(
    farm: Farm, starting: Callable[..., AgentNode]
) -> None:
    name = f"lenient-{uuid.uuid4().hex[:8]}"
    lenient = signing("old", {"old": OLD}, accept_unsigned=True)
    starting("ObedientAgent", name, CONDUCTOR_SIGNING=lenient)
    async with client(farm, None) as conductor:
        assert (await (await conductor.dispatch(task(), name)).result(60)).status is TaskStatus.COMPLETED
