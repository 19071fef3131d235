"""What would run code where it is decoded is never decoded: it is a dead letter, or dropped."""

import asyncio
import os
import pickle
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest

from conductor.broker import topology
from conductor.broker.dead_letters import decode_body
from conductor.broker.transport import kombu_connection
from conductor.client import Conductor
from conductor.core.channels import agent_channel
from conductor.core.dead_letters import DeadLetter
from tests.broker.nodes.conftest import echo
from tests.broker.nodes.test_bad_messages import HEADERS
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

PICKLE, YAML, JSON = "application/x-python-serialize", "application/x-yaml", "application/json"


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._path}",)


def pickled(path: Path) -> bytes:
    return pickle.dumps([Trap(path), {}, {}])


def in_yaml(path: Path) -> bytes:
    return f"!!python/object/apply:os.system ['touch {path}']\n".encode()


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pickle": (pickled, {"content_type": PICKLE, "content_encoding": "binary"}),
    "pickle by its name": (pickled, {"content_type": "pickle", "content_encoding": "binary"}),
    "pickle as JSON": (pickled, {"content_type": JSON, "content_encoding": "binary"}),
    "pickle as JSON in UTF-8": (pickled, {"content_type": JSON, "content_encoding": "utf-8"}),
    "pickle as data": (pickled, {"content_type": "application/data", "content_encoding": "binary"}),
    "pickle of no type": (pickled, {"content_type": "", "content_encoding": ""}),
    "yaml": (in_yaml, {"content_type": YAML, "content_encoding": "utf-8"}),
    "yaml as JSON": (in_yaml, {"content_type": JSON, "content_encoding": "utf-8"}),
    "yaml in an encoding of Python's": (in_yaml, {"content_type": JSON, "content_encoding": "base64"}),
    "msgpack": (lambda _: b"\x93\x90\x80\x80", {"content_type": "application/x-msgpack"}),
    "JSON in no encoding": (
        lambda _: b'{"a": 1}',
        {"content_type": JSON, "content_encoding": "rot13"},
    ),
    "a packed pickle": (
        lambda path: zlib.compress(pickled(path)),
        {"content_type": PICKLE, "content_encoding": "binary", "compression": "application/x-gzip"},
    ),
    "a bomb": (
        lambda path: zlib.compress(b"[" + b" " * (300 * 1024 * 1024)),
        {"content_type": JSON, "content_encoding": "utf-8", "compression": "application/x-gzip"},
    ),
    "not packed at all": (
        lambda _: b'{"a": 1}',
        {"content_type": JSON, "content_encoding": "utf-8", "compression": "application/x-bz2"},
    ),
}


def send(farm: Farm, exchange: str, key: str, payload: bytes, form: dict[str, Any], *, task: bool) -> str:
    """Publish as somebody would who has the broker and nothing of ours; gives the id of the task."""
    mark = uuid.uuid4().hex
    form = dict(form)
    headers: dict[str, Any] = {**HEADERS, "id": mark} if task else {"note": mark}
    if packed := form.pop("compression", None):
        headers["compression"] = packed
    with kombu_connection(farm.addresses.broker_url) as connection:
        connection.Producer().publish(payload, exchange=exchange, routing_key=key, headers=headers, **form)
    return mark


async def letter_with(conductor: Conductor, mark: str) -> DeadLetter:
    async def found() -> DeadLetter | None:
        letters = await conductor.dead_letters.list(limit=None)
        return next(
            (one for one in letters if mark in (one.headers.get("id"), one.headers.get("note"))), None
        )

    return await wait_until(found)


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("form", FORMS)
async def test_a_task_in_anything_but_json_is_kept_undecoded(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path, form: str, protocol: int
) -> None:
    make, properties = FORMS[form]
    trap = tmp_path / "trapped"
    payload = make(trap)
    mark = await asyncio.to_thread(
        send, farm, "", agent.worker_queue, payload, properties, task=protocol == 2
    )
    letter = await letter_with(conductor, mark)
    await echo(conductor, agent)
    assert letter.reason == "undecodable"
    assert decode_body(letter) == payload
    shown = await conductor.dead_letters.get(letter.letter_id)
    assert shown == letter
    assert (await conductor.dead_letters.replay(letter.letter_id)).replayed == [letter.letter_id]
    again = await letter_with(conductor, mark)
    assert decode_body(again) == payload
    assert again.headers.get("compression") == properties.get("compression")
    assert await conductor.dead_letters.purge(again.letter_id) == 1
    assert not trap.exists()


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_sent_to_a_channel_is_dropped_undecoded(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path, form: str
) -> None:
    make, properties = FORMS[form]
    trap, driver = tmp_path / "trapped", "amqp" if "amqp" in farm.addresses.broker_url else "redis"
    key = topology.event_routing_key(driver, agent_channel(agent.agent_id))
    await asyncio.to_thread(send, farm, topology.EVENTS, key, make(trap), properties, task=False)
    await asyncio.to_thread(
        send, farm, topology.REPLIES, topology.REPLY_TO_ANY, make(trap), properties, task=False
    )
    await echo(conductor, agent)
    assert not trap.exists()


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_sent_to_remote_control_is_dropped_undecoded(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path, form: str
) -> None:
    make, properties = FORMS[form]
    trap = tmp_path / "trapped"
    await asyncio.to_thread(_to_control, farm, make(trap), properties)
    await echo(conductor, agent)
    replies = await asyncio.to_thread(
        lambda: farm.app.control.ping(destination=[agent.hostname()], timeout=10, limit=1)
    )
    assert replies == [{agent.hostname(): {"ok": "pong"}}]
    assert not trap.exists()


def _to_control(farm: Farm, payload: bytes, form: dict[str, Any]) -> None:
    exchange = farm.app.control.mailbox.exchange
    headers = {"clock": 1}
    form = dict(form)
    if packed := form.pop("compression", None):
        headers["compression"] = packed
    with kombu_connection(farm.addresses.broker_url) as connection:
        connection.Producer().publish(payload, exchange=exchange, declare=[exchange], headers=headers, **form)


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_in_the_queue_of_a_group_is_kept_undecoded(
    conductor: Conductor, farm: Farm, tmp_path: Path, form: str
) -> None:
    make, properties = FORMS[form]
    trap, channel = tmp_path / "trapped", f"hostile:{uuid.uuid4().hex}"

    async def nothing(_: object) -> None:
        raise AssertionError

    await conductor.bus.subscribe(channel, nothing, group="judges")
    payload, queue = make(trap), topology.group_queue_name("judges", channel)
    mark = await asyncio.to_thread(send, farm, "", queue, payload, properties, task=False)
    letter = await letter_with(conductor, mark)
    assert (letter.reason, decode_body(letter)) == ("undecodable", payload)
    assert await conductor.dead_letters.purge(letter.letter_id) == 1
    await conductor.bus.delete_group(channel, "judges")
    assert not trap.exists()
