"""Whatever is published to a node, it lives, works and obeys."""

import asyncio
import json
import uuid
from typing import Any

import pytest
import redis

from conductor.broker import topology
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.dead_letters import DeadLetter
from tests.broker.nodes.conftest import echo
from tests.broker.nodes.test_bad_messages import HEADERS, JSON, QUESTION, _publish, body
from tests.support import raw_amqp
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

DEEP = '{"a":' * 3000 + "1" + "}" * 3000
#: What an envelope of kombu's has instead; None: it is not there.
CHANGES: dict[str, dict[str, str | None]] = {
    "headers that are a list": {"headers": "[1]"},
    "headers that are null": {"headers": "null"},
    "headers nested deeply": {"headers": DEEP},
    "properties that are null": {"properties": "null"},
    "no properties": {"properties": None},
    "an unknown encoding": {"properties": '{"body_encoding": "nonesuch", "delivery_tag": "x"}'},
    "broken base64": {"properties": '{"body_encoding": "base64", "delivery_tag": "x"}'},
    "no delivery tag": {"properties": "{}"},
    "a place that is a number": {"properties": '{"delivery_info": 5, "delivery_tag": "x"}'},
    "an inbox that is a number": {"reply_to": "5"},
    "an id that is a list": {"correlation_id": "[1]"},
    "a body that is a number": {"body": "5"},
    "a body that is an object": {"body": "{}"},
    "a body that is no text": {"body": '"\\ud800"'},
    "a body that is null": {"body": "null"},
    "no body": {"body": None},
}
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "no command": ("5", {}),
    "a list": ("[1]", {}),
    "a command without a name": ("{}", {}),
    "a destination that is a number": ('{"method": "ping", "destination": 5}', {}),
    "an inbox that is a number": ('{"method": "ping", "reply_to": 5}', {}),
    "a clock that is a text": ('{"method": "ping"}', {"clock": "x"}),
    "a clock at its end": ('{"method": "ping"}', {"clock": 2**63 - 1}),
}


def envelope(exchange: str, key: str, changes: dict[str, str | None]) -> str:
    """Write as JSON what kombu publishes, with other values."""
    place = json.dumps({"exchange": exchange, "routing_key": key})
    properties = {"delivery_tag": '"tag"', "delivery_info": place, "priority": "0"}
    inner = ("reply_to", "correlation_id")
    properties |= {name: text for name, text in changes.items() if name in inner and text is not None}
    parts: dict[str, str | None] = {
        "body": json.dumps(json.dumps(QUESTION)),
        "headers": "{}",
        "content-type": '"application/json"',
        "content-encoding": '"utf-8"',
        "properties": _object(properties),
        **{name: text for name, text in changes.items() if name not in inner},
    }
    return _object(parts)


def _object(parts: Any) -> str:
    inner = ",".join(f'"{name}":{text}' for name, text in parts.items() if text is not None)
    return f"{{{inner}}}"


def publish(url: str, exchange: str, key: str, text: str | bytes) -> int:
    """Publish to where kombu listens on Redis; gives how many heard it."""
    with kombu_connection(url) as connection, redis.Redis.from_url(url) as client:
        return int(client.publish(connection.default_channel._get_publish_topic(exchange, key), text))


async def obeys(farm: Farm, agent: AgentNode) -> None:
    """See that the agent answers to remote control."""
    replies = await asyncio.to_thread(
        lambda: farm.app.control.ping(destination=[agent.hostname()], timeout=10, limit=1)
    )
    assert replies == [{agent.hostname(): {"ok": "pong"}}]


def on_redis(farm: Farm) -> str:
    url = farm.addresses.broker_url
    if url.startswith("amqp"):
        pytest.skip("kombu's envelopes are for Redis")
    return url


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
async def test_an_envelope_that_is_none_of_kombus_is_dropped(
    conductor: Conductor, agent: AgentNode, farm: Farm, changes: dict[str, str | None]
) -> None:
    url, channel = on_redis(farm), agent_channel(agent.agent_id)
    control = farm.app.control.mailbox.exchange.name
    for exchange, key in ((topology.EVENTS, channel), (topology.REPLIES, "somebody"), (control, "")):
        heard = await asyncio.to_thread(publish, url, exchange, key, envelope(exchange, key, changes))
        assert heard or exchange == topology.REPLIES
    await echo(conductor, agent)
    await obeys(farm, agent)


@pytest.mark.parametrize("text", [b"xx", b"\xff", b"[1]", b"null", DEEP.encode()], ids=lambda text: text[:5])
async def test_what_is_no_envelope_is_dropped(
    conductor: Conductor, agent: AgentNode, farm: Farm, text: bytes
) -> None:
    url, channel = on_redis(farm), agent_channel(agent.agent_id)
    assert await asyncio.to_thread(publish, url, topology.EVENTS, channel, text)
    assert await asyncio.to_thread(publish, url, farm.app.control.mailbox.exchange.name, "", text)
    await echo(conductor, agent)
    await obeys(farm, agent)


@pytest.mark.parametrize(("text", "headers"), COMMANDS.values(), ids=COMMANDS)
async def test_a_command_that_makes_no_sense_is_dropped(
    conductor: Conductor, agent: AgentNode, farm: Farm, text: str, headers: dict[str, Any]
) -> None:
    await asyncio.to_thread(_command, farm, text, headers)
    await echo(conductor, agent)
    await obeys(farm, agent)


@pytest.mark.parametrize("properties", raw_amqp.PROPERTIES.values(), ids=raw_amqp.PROPERTIES)
async def test_a_message_whose_properties_nobody_reads_is_kept_or_dropped(
    conductor: Conductor, agent: AgentNode, farm: Farm, properties: bytes
) -> None:
    url, mark = on_rabbitmq(farm), uuid.uuid4().hex
    event = topology.event_routing_key(topology.AMQP, agent_channel(agent.agent_id))
    control = farm.app.control.mailbox.exchange.name
    places = (("", agent.worker_queue), (topology.EVENTS, event), (topology.REPLIES, ""), (control, ""))
    for exchange, key in places:
        text = mark.encode() if key == agent.worker_queue else b"{}"
        await asyncio.to_thread(raw_amqp.publish_raw, url, exchange, key, text, properties)
    await echo(conductor, agent)
    await obeys(farm, agent)
    letter = await wait_until(lambda: letter_in(conductor, mark))
    assert (letter.reason, letter.queue, letter.body) == ("undecodable", agent.worker_queue, mark)


@pytest.mark.parametrize("key", raw_amqp.KEYS.values(), ids=raw_amqp.KEYS)
async def test_a_message_with_a_routing_key_that_is_no_text_is_kept(
    conductor: Conductor, agent: AgentNode, farm: Farm, key: bytes
) -> None:
    url, mark = on_rabbitmq(farm), uuid.uuid4().hex
    await asyncio.to_thread(raw_amqp.publish_under, url, key, agent.worker_queue, mark.encode())
    await echo(conductor, agent)
    letter = await wait_until(lambda: letter_in(conductor, mark))
    assert letter.reason == "undecodable"


async def test_a_good_task_with_headers_nested_deeply_ends(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    task_id, deep = uuid.uuid4().hex, json.loads('{"a":' * 400 + "1" + "}" * 400)
    headers = {**HEADERS, "id": task_id, "deep": deep}
    await asyncio.to_thread(_publish, farm, agent.agent_id, body(), headers, JSON)
    await echo(conductor, agent)
    await (await conductor.handle(task_id)).result(20)


async def letter_in(conductor: Conductor, body: str) -> DeadLetter | None:
    letters = await conductor.dead_letters.list(limit=None)
    return next((letter for letter in letters if letter.body == body), None)


def on_rabbitmq(farm: Farm) -> str:
    url = farm.addresses.broker_url
    if not url.startswith("amqp"):
        pytest.skip("these are for RabbitMQ")
    return url


def _command(farm: Farm, text: str, headers: dict[str, Any]) -> None:
    exchange = farm.app.control.mailbox.exchange
    with kombu_connection(farm.addresses.broker_url) as connection:
        connection.Producer().publish(
            text,
            exchange=exchange,
            declare=[exchange],
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
        )
