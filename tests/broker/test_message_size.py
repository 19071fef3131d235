"""Messages that are larger than they may be are refused where they are sent and where they come in."""

import asyncio
import json
import logging

import kombu
import pytest

from conductor.broker import topology
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from conductor.orchestration.message_bus import InMemoryMessageBus
from tests.broker.conftest import BusMaker
from tests.broker.test_bus_details import publish_raw
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until

MIB = 1024 * 1024


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")  # type: ignore[no-any-return]


def of_size(size: int, fill: str = "x", **changes: str) -> AgentMessage:
    """A message of so many bytes as JSON."""
    message = a_message(**changes)
    message.payload["text"] = ""
    room = size - len(message.model_dump_json().encode())
    each = len(json.dumps(fill, ensure_ascii=False).encode()) - 2
    message.payload["text"] = fill * (room // each) + "." * (room % each)
    assert len(message.model_dump_json().encode()) == size
    return message


async def test_one_byte_too_many_is_refused_by_each_way_to_send(make_bus: BusMaker) -> None:
    channel, seen = unique("size"), Inbox()
    async with make_bus() as bus:
        await bus.subscribe(channel, seen)
        for send in (bus.publish, bus.request):
            with pytest.raises(MessageBusError, match=r"bus\.max_message_bytes") as caught:
                # A request gets a correlation id where it has none, and is as large as what is sent.
                await send(channel, of_size(MIB + 1, correlation_id="a question"))
            assert caught.value.error_code == "MESSAGE_TOO_LARGE"
            assert caught.value.details == {"size": MIB + 1, "limit": MIB}
        assert bus.published_count == 0
        for fill in ("x", '"', "é", "𝄞"):
            await bus.publish(channel, of_size(MIB, fill))
        await seen.has(0, 0, 0, 0)


async def test_the_size_is_a_setting(url: str) -> None:
    channel, seen = unique("size"), Inbox()
    async with KombuMessageBus(url, max_message_bytes=2 * MIB) as bus:
        await bus.subscribe(channel, seen)
        await bus.publish(channel, of_size(2 * MIB))
        await seen.has(0)
    async with InMemoryMessageBus(max_message_bytes=2000) as memory:
        await memory.publish(channel, of_size(2000))
        with pytest.raises(MessageBusError, match="2001 bytes"):
            await memory.publish(channel, of_size(2001))


@pytest.mark.parametrize("size", [MIB + 1, 8 * MIB])
async def test_one_that_somebody_else_sent_is_dropped_and_counted(
    url: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    channel, seen = unique("size"), Inbox()
    async with KombuMessageBus(url) as bus:
        await bus.subscribe(channel, seen)
        with caplog.at_level(logging.WARNING):
            body = of_size(size).model_dump_json()
            await asyncio.to_thread(publish_raw, url, channel, body, content_type="application/json")
            await wait_until(lambda: bus.refused_count == 1)
        await bus.publish(channel, a_message(7))
        await seen.has(7)
        assert (bus.invalid_count, bus.dropped_count) == (0, 0)
    assert f"What came on {channel} is dropped" in caplog.text
    assert "bus.max_message_bytes" in caplog.text


@pytest.mark.parametrize("size", [MIB + 1, 8 * MIB])
async def test_one_in_the_queue_of_a_group_is_a_dead_letter_as_it_was(
    url: str, valkey_url: str, size: int
) -> None:
    channel, group, seen = unique("size"), unique("g").replace(":", "-"), Inbox()
    async with KombuMessageBus(url, retry_policy=RetryPolicy(max_retries=0)) as bus:
        await bus.subscribe(channel, seen, group=group)
        body = of_size(size).model_dump_json()
        await asyncio.to_thread(_put, url, topology.group_queue_name(group, channel), body)
        letters = DeadLetterQueue(ConductorConfig(), url, valkey_url)

        async def found() -> list[DeadLetter]:
            return [one for one in await letters.list(limit=None) if one.body == body]

        (letter,) = await wait_until(found)
        assert (letter.reason, letter.error_code) == ("refused", "MESSAGE_TOO_LARGE")
        await bus.publish(channel, a_message(7))
        await seen.has(7)
        assert await letters.purge(letter.letter_id) == 1
        await letters.close()
        await bus.delete_group(channel, group)


def _put(url: str, queue: str, body: str) -> None:
    with kombu.Connection(url) as connection:
        producer = connection.Producer()
        producer.publish(body, exchange="", routing_key=queue, content_type="application/json")
