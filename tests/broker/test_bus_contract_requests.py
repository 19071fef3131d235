"""The promises of the message bus about requests and connecting (5 to 7), for every implementation."""

import asyncio
import threading

import pytest

from conductor.core.enums import MessageType, Priority
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.orchestration.message_bus import MessageBus
from tests.broker.conftest import BusMaker
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until

# Promises 5 and 6: requests.


async def answer(bus: MessageBus, channel: str, where: str = "conductor:response") -> None:
    """Have the bus answer requests on `channel`, on another channel."""

    async def responder(message: AgentMessage) -> None:
        response = message.create_response(
            "responder", MessageType.FEEDBACK, {"number": message.payload["number"] + 1}
        )
        await bus.publish(where, response)

    await bus.subscribe(channel, responder)


async def test_request_is_answered_with_its_priority(bus: MessageBus) -> None:
    channel = unique("ask")
    await answer(bus, channel)
    request = a_message(1, priority=Priority.CRITICAL)
    response = await bus.request(channel, request, timeout=10)
    assert response.payload == {"number": 2}
    assert response.priority is Priority.CRITICAL
    assert response.recipient_id == request.sender_id


async def test_correlation_id_is_set_on_a_copy(bus: MessageBus) -> None:
    channel, inbox = unique("auto"), Inbox()
    await bus.subscribe(channel, inbox)
    await answer(bus, channel)
    request = a_message(1)
    response = await bus.request(channel, request, timeout=10)
    assert response.correlation_id == request.message_id
    assert request.correlation_id is None
    await inbox.has(1)
    assert inbox.messages[0].correlation_id == request.message_id


async def test_a_given_correlation_id_is_kept(bus: MessageBus) -> None:
    channel = unique("given")
    await answer(bus, channel, where=unique("elsewhere"))
    response = await bus.request(channel, a_message(1, correlation_id="mine-" + channel), timeout=10)
    assert response.correlation_id == "mine-" + channel


async def test_a_request_does_not_answer_itself(bus: MessageBus) -> None:
    channel, inbox = unique("echo"), Inbox()
    await bus.subscribe(channel, inbox)
    with pytest.raises(MessageBusError) as raised:
        await bus.request(channel, a_message(1), timeout=0.3)
    assert raised.value.error_code == "REQUEST_TIMEOUT"
    await inbox.has(1)


async def test_request_timeout_says_what_it_waited_for(bus: MessageBus) -> None:
    channel, request = unique("silence"), a_message(1)
    with pytest.raises(MessageBusError) as raised:
        await bus.request(channel, request, timeout=0.2)
    assert raised.value.error_code == "REQUEST_TIMEOUT"
    assert raised.value.details == {
        "channel": channel,
        "correlation_id": request.message_id,
        "timeout_seconds": 0.2,
    }


async def test_nothing_stays_behind_after_requests(bus: MessageBus) -> None:
    channel = unique("leak")
    tasks = asyncio.all_tasks()
    with pytest.raises(MessageBusError):
        await bus.request(channel, a_message(1), timeout=0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.request(channel, a_message(2)), timeout=0.1)
    await answer(bus, channel)
    await bus.request(channel, a_message(3), timeout=10)
    await bus.unsubscribe(channel)
    assert len(bus._pending) == 0  # type: ignore[attr-defined]
    await wait_until(lambda: asyncio.all_tasks() <= tasks)


async def test_concurrent_requests_get_their_own_answers(bus: MessageBus) -> None:
    channel = unique("many")
    await answer(bus, channel)
    responses = await asyncio.gather(*(bus.request(channel, a_message(n), timeout=20) for n in range(100)))
    assert [response.payload["number"] for response in responses] == list(range(1, 101))


async def test_the_answer_may_come_before_the_responder_is_done(bus: MessageBus) -> None:
    channel, release = unique("early"), asyncio.Event()

    async def responder(message: AgentMessage) -> None:
        await bus.publish("conductor:response", message.create_response("r", MessageType.FEEDBACK, {}))
        await release.wait()

    await bus.subscribe(channel, responder)
    await bus.request(channel, a_message(1), timeout=10)
    release.set()


# Promise 7: connecting.


async def test_connect_and_disconnect_are_idempotent(make_bus: BusMaker) -> None:
    bus = make_bus()
    assert not bus.is_connected
    await bus.disconnect()
    await bus.connect()
    await bus.connect()
    assert bus.is_connected
    await bus.disconnect()
    await bus.disconnect()
    assert not bus.is_connected


async def test_disconnect_drops_all_subscriptions(bus: MessageBus) -> None:
    channel, inbox, witness = unique("dropped"), Inbox(), Inbox()
    await bus.subscribe(channel, inbox)
    await bus.disconnect()
    await bus.connect()
    await bus.subscribe(channel, witness)
    await bus.publish(channel, a_message(1))
    await witness.has(1)
    assert inbox.messages == []


async def test_every_operation_needs_a_connection(make_bus: BusMaker) -> None:
    bus = make_bus()
    for operation in (
        bus.publish("somewhere", a_message()),
        bus.subscribe("somewhere", Inbox()),
        bus.unsubscribe("somewhere"),
        bus.request("somewhere", a_message()),
    ):
        with pytest.raises(MessageBusError) as raised:
            await operation
        assert raised.value.error_code == "BUS_NOT_CONNECTED"


async def test_disconnect_fails_pending_requests_at_once(bus: MessageBus) -> None:
    channel, asked = unique("pending"), Inbox()
    await bus.subscribe(channel, asked)
    request = asyncio.ensure_future(bus.request(channel, a_message(1), timeout=60))
    await asked.has(1)
    await bus.disconnect()
    with pytest.raises(MessageBusError) as raised:
        await asyncio.wait_for(request, timeout=1)
    assert raised.value.error_code == "BUS_DISCONNECTED"


async def test_disconnect_from_within_a_callback(bus: MessageBus) -> None:
    channel, done = unique("inside"), asyncio.Event()

    async def leaving(message: AgentMessage) -> None:
        await bus.disconnect()
        done.set()

    await bus.subscribe(channel, leaving)
    await bus.publish(channel, a_message(1))
    await asyncio.wait_for(done.wait(), timeout=10)
    assert not bus.is_connected


async def test_disconnect_from_a_task_that_a_callback_waits_for(bus: MessageBus) -> None:
    channel, task = unique("inside-task"), asyncio.Event()

    async def leaving(message: AgentMessage) -> None:
        task.set()
        await asyncio.create_task(bus.disconnect())

    await bus.subscribe(channel, leaving)
    publishing = asyncio.ensure_future(bus.publish(channel, a_message(1)))
    await asyncio.wait_for(task.wait(), timeout=10)
    await asyncio.gather(publishing, return_exceptions=True)
    await wait_until(lambda: not bus.is_connected)
    await wait_until(lambda: not any("conductor bus" in thread.name for thread in threading.enumerate()))


async def test_disconnect_cancels_running_callbacks(bus: MessageBus) -> None:
    channel, started, ended = unique("running"), asyncio.Event(), asyncio.Event()

    async def slow(message: AgentMessage) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await bus.subscribe(channel, slow)
    publishing = asyncio.ensure_future(bus.publish(channel, a_message(1)))
    await asyncio.wait_for(started.wait(), timeout=10)
    await bus.disconnect()
    assert ended.is_set()
    await publishing
