"""What a bus counts, in memory and over brokers: exact numbers."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.client import Conductor
from conductor.core.channels import BROADCAST, agent_channel, workflow_channel
from conductor.core.config import ConductorConfig
from conductor.core.enums import MessageType
from conductor.core.exceptions import MessageBusError
from conductor.core.fields import utc_now
from conductor.core.message_size import DEFAULT_MAX_MESSAGE_BYTES
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition
from conductor.core.prometheus import PrometheusMetrics
from conductor.core.retry import RetryPolicy
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until


class Counted:
    """A bus, and the numbers it gave away."""

    def __init__(self, kind: str, url: str | None) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {
            "metrics": PrometheusMetrics(self.registry),
            "retry_policy": RetryPolicy(max_retries=0),
        }
        self.in_memory = kind == "memory"
        self.url = url
        self.bus: MessageBus = (
            InMemoryMessageBus(**options) if url is None else KombuMessageBus(url, **options)
        )

    def value(self, name: str, **labels: str) -> float:
        """A number, as it is served."""
        found = self.registry.get_sample_value(f"conductor_{name}", labels)
        assert found is not None, f"{name} {labels} is not there from the start"
        return found

    async def has(self, number: float, name: str, **labels: str) -> None:
        """Wait until a number is served that is not less, and compare it."""
        await wait_until(lambda: self.value(name, **labels) >= number)
        assert self.value(name, **labels) == number


@pytest.fixture(params=["memory", "valkey", "rabbitmq"])
def counted(request: pytest.FixtureRequest) -> Counted:
    """A bus that is not connected yet."""
    url = None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    return Counted(request.param, url)


def an_old_message() -> AgentMessage:
    """A message whose time is over."""
    return a_message(0, ttl_seconds=1, timestamp=utc_now().replace(year=2020))


async def test_published_and_delivered_messages_are_counted_by_the_kind_of_channel(counted: Counted) -> None:
    async with counted.bus as bus:
        first, second = Inbox(), Inbox()
        agent = agent_channel(unique("a").replace(":", "-"))
        await bus.subscribe(agent, first)
        await bus.subscribe(agent, second)
        for number in range(5):
            await bus.publish(agent, a_message(number))
        await bus.publish(BROADCAST, a_message())
        await bus.publish(unique("mine"), a_message())
        await counted.has(5, "messages_published_total", channel="agent")
        await counted.has(1, "messages_published_total", channel="broadcast")
        await counted.has(1, "messages_published_total", channel="other")
        await counted.has(10, "messages_delivered_total", channel="agent")
        assert counted.value("messages_published_total", channel="workflow") == 0


async def test_disconnecting_loses_no_number(counted: Counted) -> None:
    async with counted.bus as bus:
        await bus.publish(workflow_channel("one"), a_message())
    assert counted.value("messages_published_total", channel="workflow") == 1
    async with counted.bus as bus:
        await bus.publish(workflow_channel("one"), a_message())
    assert counted.value("messages_published_total", channel="workflow") == 2


async def test_expired_messages_are_counted_and_not_as_published(counted: Counted) -> None:
    async with counted.bus as bus:
        await bus.publish(BROADCAST, an_old_message())
        asking = asyncio.ensure_future(bus.request(BROADCAST, an_old_message(), timeout=60))
        await counted.has(2, "messages_expired_total")
        asking.cancel()
        await asyncio.wait({asking})
        assert counted.value("messages_published_total", channel="broadcast") == 0


async def test_requests_are_counted_by_their_outcome_with_their_time(counted: Counted) -> None:
    async with counted.bus as bus:
        channel = unique("asked")

        async def answer(message: AgentMessage) -> None:
            kind = MessageType.ERROR if message.payload["number"] == 2 else MessageType.FEEDBACK
            if message.payload["number"] < 3:
                await bus.publish("conductor:response", message.create_response("me", kind, {}))

        await bus.subscribe(channel, answer)
        for number in range(3):
            await bus.request(channel, a_message(number), timeout=20)
        with pytest.raises(MessageBusError):
            await bus.request(channel, a_message(3), timeout=0.2)
        asking = asyncio.ensure_future(bus.request(channel, a_message(4), timeout=20))
        await counted.has(5, "messages_delivered_total", channel="other")
        asking.cancel()
        await asyncio.wait({asking})
        counts = {
            outcome: counted.value("request_duration_seconds_count", outcome=outcome)
            for outcome in ("answered", "error", "timeout", "failed", "cancelled")
        }
        assert counts == {"answered": 2, "error": 1, "timeout": 1, "failed": 0, "cancelled": 1}
        assert counted.value("request_duration_seconds_sum", outcome="timeout") >= 0.2
        late = asyncio.ensure_future(bus.request(channel, a_message(5), timeout=20))
        await counted.has(6, "messages_delivered_total", channel="other")
    with pytest.raises(MessageBusError):
        await late
    assert counted.value("request_duration_seconds_count", outcome="failed") == 1


async def test_what_a_group_gives_up_is_counted_as_a_dead_letter(counted: Counted) -> None:
    async with counted.bus as bus:
        channel = unique("work")

        async def fail(message: AgentMessage) -> None:
            raise ValueError("no")

        await bus.subscribe(channel, fail, group="workers")
        await bus.publish(channel, a_message())
        await counted.has(1, "dead_letters_total", reason="retries_exhausted")
        await counted.has(1, "messages_delivered_total", channel="other")
        await bus.delete_group(channel, "workers")


async def test_a_full_buffer_counts_what_it_cannot_take(valkey_url: str) -> None:
    registry = CollectorRegistry()
    channel, gate = unique("full"), asyncio.Event()

    async def hold(message: AgentMessage) -> None:
        await gate.wait()

    async with KombuMessageBus(valkey_url, buffer_size=10, metrics=PrometheusMetrics(registry)) as bus:
        await bus.subscribe(channel, hold)
        for number in range(30):
            await bus.publish(channel, a_message(number))
        name, labels = "conductor_messages_dropped_total", {"reason": "buffer_full"}
        await wait_until(lambda: registry.get_sample_value(name, labels) == 19)
        assert bus.dropped_count == 19
        gate.set()


async def test_a_bus_that_was_given_no_metrics_works(counted: Counted) -> None:
    inbox = Inbox()
    bus = InMemoryMessageBus() if counted.url is None else KombuMessageBus(counted.url)
    async with bus:
        channel = unique("plain")
        await bus.subscribe(channel, inbox)
        await bus.publish(channel, a_message(1))
        await inbox.has(1)


@pytest.mark.parametrize("room", [-1, 0, 100, -1_000_000])
async def test_what_is_too_large_to_be_asked_is_refused_and_nothing_else(counted: Counted, room: int) -> None:
    """Also where it would be just small enough without what makes a question of it."""
    question = a_message(1, correlation_id=None, payload={"text": ""})
    text = "x" * (DEFAULT_MAX_MESSAGE_BYTES - len(question.model_dump_json()) - room)
    question.payload["text"] = text
    added = len(f'"{question.message_id}"') - len("null")
    fits, channel = room >= added, unique("large")

    async def answer(message: AgentMessage) -> None:
        await counted.bus.publish(BROADCAST, a_message(2, correlation_id=message.correlation_id))

    async with counted.bus:
        await counted.bus.subscribe(channel, answer)
        if fits:
            await counted.bus.request(channel, question)
        else:
            with pytest.raises(MessageBusError, match=r"more than bus\.max_message_bytes"):
                await counted.bus.request(channel, question)
    await counted.has(not fits, "messages_refused_total", reason="too_large")
    await counted.has(fits, "messages_published_total", channel="other")
    await counted.has(0, "request_duration_seconds_count", outcome="failed")
    assert question.correlation_id is None


async def test_what_is_too_large_to_be_published_is_counted(counted: Counted) -> None:
    async with counted.bus:
        with pytest.raises(MessageBusError):
            await counted.bus.publish(unique("large"), a_message(1, payload={"text": "x" * 2_000_000}))
    await counted.has(1, "messages_refused_total", reason="too_large")
    assert counted.value("messages_published_total", channel="other") == 0


async def test_a_task_that_is_too_large_to_be_dispatched_is_counted(valkey_url: str) -> None:
    registry = CollectorRegistry()
    metrics, config = PrometheusMetrics(registry), ConductorConfig(broker_url=valkey_url)
    large = TaskDefinition(name="large", input_data={"text": "x" * DEFAULT_MAX_MESSAGE_BYTES})
    async with Conductor(config, metrics=metrics) as conductor:
        with pytest.raises(MessageBusError):
            await conductor.dispatch(large, "nobody")
    assert registry.get_sample_value("conductor_messages_refused_total", {"reason": "too_large"}) == 1
