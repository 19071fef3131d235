"""The spans of messages: from who publishes or asks to the callbacks, on every bus."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.enums import MessageType
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from tests.support.spans import FoundSpan, Spans, recorded, tree
from tests.support.waiting import wait_until

POLICY = RetryPolicy(initial_delay=0.05, backoff_multiplier=1)


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[Spans]:
    with recorded(tmp_path / "none") as spans:
        yield spans


@pytest.fixture(params=["memory", "valkey", "rabbitmq"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def buses(
    request: pytest.FixtureRequest, system: str, spans: Spans
) -> AsyncIterator[tuple[MessageBus, MessageBus]]:
    """Who publishes, and who listens; one and the same in memory."""
    if system == "memory":
        async with InMemoryMessageBus(retry_policy=POLICY) as bus:
            yield bus, bus
        return
    url = request.getfixturevalue(f"{system}_url")
    async with (
        KombuMessageBus(url, retry_policy=POLICY) as bus,
        KombuMessageBus(url, retry_policy=POLICY) as other,
    ):
        yield bus, other


def message(**fields: object) -> AgentMessage:
    given = {"message_type": MessageType.FEEDBACK, "sender_id": "me", "payload": {"secret": "hidden"}}
    return AgentMessage.model_validate(given | fields)


async def spans_of(spans: Spans, expected: list[str]) -> dict[str, FoundSpan]:
    """Wait for exactly these spans, all in one trace."""
    await wait_until(lambda: tree(spans.all()) == expected, timeout=20)
    found = spans.all()
    assert len({span.trace_id for span in found}) == 1
    assert "hidden" not in repr(found)
    return {span.name: span for span in found}


async def test_each_callback_is_below_the_publishing(
    buses: tuple[MessageBus, MessageBus], spans: Spans, system: str
) -> None:
    one, other = buses
    channel = f"conductor:workflow:{uuid.uuid4().hex}"
    heard = asyncio.Queue[AgentMessage]()

    async def fail(message: AgentMessage) -> None:
        await heard.put(message)
        raise ValueError("hidden")

    await other.subscribe(channel, heard.put)
    await other.subscribe(channel, fail)
    sent = message()
    await one.publish(channel, sent)
    assert await heard.get() == await heard.get() == sent
    await spans_of(spans, ["publish workflow", "  process workflow", "  process workflow"])
    [publish] = [span for span in spans.all() if span.kind == "producer"]
    first, second = (span for span in spans.all() if span.kind == "consumer")
    assert sorted([first.status, second.status]) == ["ERROR", "UNSET"]
    for span in (publish, first, second):
        assert span.attributes["messaging.message.id"] == sent.message_id
        assert span.attributes["messaging.destination.name"] == channel
        expected = {"memory": "memory", "valkey": "redis", "rabbitmq": "rabbitmq"}
        assert span.attributes["messaging.system"] == expected[system]


async def test_a_request_ends_with_its_answer(buses: tuple[MessageBus, MessageBus], spans: Spans) -> None:
    one, other = buses
    channel = f"questions-{uuid.uuid4().hex}"

    async def answer(question: AgentMessage) -> None:
        response = question.create_response("you", MessageType.FEEDBACK, {})
        await other.publish("conductor:response", response)

    await other.subscribe(channel, answer)
    await one.request(channel, message(), timeout=20)
    asked = "publish other" if one is other else None
    expected = ["request other", asked and f"  {asked}", "process other", "publish response"]
    levels = [0, 1, 2, 3] if asked else [0, None, 1, 2]
    found = await spans_of(
        spans,
        [
            f"{'  ' * level}{name.strip()}"
            for name, level in zip(expected, levels, strict=True)
            if name and level is not None
        ],
    )
    assert found["request other"].kind == "client"


async def test_a_request_without_an_answer_is_an_error(
    buses: tuple[MessageBus, MessageBus], spans: Spans
) -> None:
    with pytest.raises(Exception, match="No answer"):
        await buses[0].request(f"nobody-{uuid.uuid4().hex}", message(), timeout=0.2)
    [request] = [span for span in spans.all() if span.kind == "client"]
    assert (request.status, request.attributes["error.type"]) == ("ERROR", "REQUEST_TIMEOUT")


async def test_each_try_of_a_group_is_a_span(buses: tuple[MessageBus, MessageBus], spans: Spans) -> None:
    one, other = buses
    channel, group = f"jobs-{uuid.uuid4().hex}", uuid.uuid4().hex
    tries: list[int] = []

    async def fail_once(message: AgentMessage) -> None:
        tries.append(message.metadata["attempt"])
        if len(tries) == 1:
            raise ValueError("hidden")

    await other.subscribe(channel, fail_once, group=group)
    await one.publish(channel, message())
    await spans_of(spans, ["publish other", "  process other", "  process other"])
    processed = [span for span in spans.all() if span.kind == "consumer"]
    processed.sort(key=lambda span: span.attributes["conductor.attempt"])
    assert [span.status for span in processed] == ["ERROR", "UNSET"]
    assert tries == [1, 2]
    await other.delete_group(channel, group)


async def test_who_subscribed_in_a_span_is_not_the_parent_of_what_comes(
    buses: tuple[MessageBus, MessageBus], spans: Spans
) -> None:
    from opentelemetry import trace

    one, other = buses
    channel, heard = f"conductor:workflow:{uuid.uuid4().hex}", asyncio.Event()

    async def hear(message: AgentMessage) -> None:
        heard.set()

    with trace.get_tracer("test").start_as_current_span("subscribing"):
        await other.subscribe(channel, hear)
    await one.publish(channel, message())
    await asyncio.wait_for(heard.wait(), 20)
    await wait_until(
        lambda: tree(spans.all()) == ["publish workflow", "  process workflow", "subscribing"], timeout=20
    )
    await wait_until(lambda: len({span.trace_id for span in spans.all()}) == 2)


async def test_without_tracing_no_header_is_sent(valkey_url: str) -> None:
    import json

    import redis.asyncio as redis

    from conductor.broker import topology

    channel = f"conductor:workflow:{uuid.uuid4().hex}"
    client = redis.Redis.from_url(valkey_url)
    async with KombuMessageBus(valkey_url) as bus, client.pubsub() as pubsub:
        await pubsub.psubscribe(f"*{topology.EVENTS}/{channel}")
        await pubsub.get_message(timeout=10)
        await bus.publish(channel, message())
        received = None
        while received is None:
            received = await pubsub.get_message(timeout=10, ignore_subscribe_messages=True)
    assert json.loads(received["data"])["headers"] == {}
    await client.aclose()
