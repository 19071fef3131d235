"""The bus between real processes, on both brokers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from tests.support.bus_process import BusProcess
from tests.support.buses import Inbox, a_message, unique
from tests.support.inspecting import connections, traces
from tests.support.waiting import wait_until

#: Connections of one bus: one publishes, one consumes.
CONNECTIONS_PER_BUS = 2


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")  # type: ignore[no-any-return]


@pytest.fixture
async def bus(url: str) -> AsyncIterator[KombuMessageBus]:
    async with KombuMessageBus(url) as bus:
        yield bus


@pytest.fixture
async def processes() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_ten_thousand_messages_reach_three_subscribers_complete_and_in_order(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack
) -> None:
    count, base = 10_000, unique("stream")
    first = await processes.enter_async_context(await BusProcess.start(url))
    second = await processes.enter_async_context(await BusProcess.start(url))
    await first.call("subscribe", channel=base)
    await first.call("subscribe", channel=f"{base}*")
    await second.call("subscribe", channel=base)

    for start in range(0, count, 100):
        await asyncio.gather(*(bus.publish(base, a_message(n)) for n in range(start, start + 100)))
    assert bus.published_count == count

    for process, channel in ((first, base), (first, f"{base}*"), (second, base)):
        received: list[int] = []
        for _ in range(200):
            received = await process.call("received", channel=channel)
            if len(received) >= count:
                break
            await asyncio.sleep(0.1)
        assert received == list(range(count))
    assert await first.call("counts") == [0, 0]


async def test_what_another_process_publishes_right_after_subscribe_is_received(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack
) -> None:
    other = await processes.enter_async_context(await BusProcess.start(url))
    for number in range(200):
        channel, inbox = unique("right-after"), Inbox()
        await bus.subscribe(channel, inbox)
        await other.call("publish", channel=channel, first=number, count=1)
        await inbox.has(number)
        await bus.unsubscribe(channel)


async def test_a_request_is_answered_by_another_process(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack
) -> None:
    other = await processes.enter_async_context(await BusProcess.start(url))
    channel, bystander = unique("ask"), Inbox()
    await other.call("answer", channel=channel)
    await bus.subscribe("conductor:response", bystander)
    request = a_message(41)
    response = await bus.request(channel, request, timeout=20)
    assert response.payload == {"number": 42}
    assert response.correlation_id == request.message_id
    await wait_until(lambda: bystander.messages)
    assert bystander.messages[0] == response


async def test_a_thousand_requests_in_flight_need_two_connections(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack
) -> None:
    before = connections(url)
    other = await processes.enter_async_context(await BusProcess.start(url))
    channel = unique("flood")
    await other.call("answer", channel=channel)
    await bus.request(channel, a_message(0), timeout=20)

    requests = [asyncio.ensure_future(bus.request(channel, a_message(n), timeout=60)) for n in range(1000)]
    await wait_until(lambda: len(bus._pending) == 1000 or requests[0].done())
    assert len(connections(url) - before) == CONNECTIONS_PER_BUS
    responses = await asyncio.gather(*requests)
    assert [response.payload["number"] for response in responses] == list(range(1, 1001))
    assert len(bus._pending) == 0


async def test_a_killed_subscriber_leaves_nothing_behind(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack
) -> None:
    clean = traces(url)
    process = await processes.enter_async_context(await BusProcess.start(url))
    channel = unique("killed")
    await process.call("subscribe", channel=channel)
    await process.call("subscribe", channel=f"{channel}:*")
    await process.call("answer", channel=f"{channel}:ask")
    await bus.request(f"{channel}:ask", a_message(1), timeout=20)
    assert traces(url) > clean
    await process.kill()
    await bus.publish(channel, a_message(1))
    await wait_until(lambda: not any(channel.replace(":", ".") in trace for trace in traces(url)), timeout=60)
    await bus.disconnect()
    await wait_until(lambda: traces(url) <= clean, timeout=60, interval=0.2)


async def test_a_bus_leaves_nothing_behind_when_it_disconnects(url: str) -> None:
    before, clean = connections(url), traces(url)
    async with KombuMessageBus(url) as bus:
        channel = unique("left")
        await bus.subscribe(channel, Inbox())
        await bus.subscribe(f"{channel}:*", Inbox())
        await bus.unsubscribe(f"{channel}:*")
    await wait_until(lambda: connections(url) <= before, interval=0.2)
    assert traces(url) <= clean
