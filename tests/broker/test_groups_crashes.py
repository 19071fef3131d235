"""Groups whose members are killed, cut off or slow, on both brokers, with real processes."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.channels import DLQ
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from conductor.store.embedded import EmbeddedServer
from tests.support.buses import Inbox, a_message, unique
from tests.support.group_process import GroupProcess
from tests.support.letters import filed_letters
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

#: A dead member is noticed within a second on Redis; RabbitMQ does not ask.
SOON: dict[str, Any] = {"visibility_timeout": 1.0, "touch_interval": 0.2, "restore_interval": 0.2}


@pytest.fixture(params=["valkey", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")  # type: ignore[no-any-return]


@pytest.fixture
async def bus(url: str, valkey_url: str) -> AsyncIterator[KombuMessageBus]:
    async with KombuMessageBus(url, dedup_url=valkey_url, **SOON) as bus:
        yield bus


@pytest.fixture
async def processes() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


async def a_member(processes: AsyncExitStack, url: str, **options: Any) -> GroupProcess:
    return await processes.enter_async_context(await GroupProcess.start(url, **(SOON | options)))


async def test_a_killed_member_gives_its_message_to_another(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack, group: str
) -> None:
    channel, inbox = unique("killed"), Inbox()
    victim = await a_member(processes, url)
    await victim.call("member", channel=channel, group=group, then="hang")
    await bus.publish(channel, a_message(1))
    await wait_until(lambda: victim.call("records"))
    await bus.subscribe(channel, inbox, group=group)
    await bus.publish(channel, a_message(2))
    await inbox.has(2)
    await victim.kill()
    await inbox.has(2, 1)
    assert inbox.messages[1].metadata == {"attempt": 2, "redelivered": True}


async def test_a_message_that_kills_three_members_is_a_dead_letter(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack, group: str
) -> None:
    channel, dead, poison = unique("poison"), Inbox(), a_message(1)
    await bus.subscribe(DLQ, dead)
    for number in range(3):
        victim = await a_member(processes, url)
        await victim.call("member", channel=channel, group=group, then="die")
        if number == 0:
            await bus.publish(channel, poison)
        await victim.ended()
    survivor = await a_member(processes, url)
    await survivor.call("member", channel=channel, group=group)
    await bus.publish(channel, a_message(2))

    await wait_until(lambda: [m for m in dead.messages if m.metadata["dead_letter"]["channel"] == channel])
    (letter,) = filed_letters(url, poison.message_id)
    assert (letter.reason, letter.attempts, letter.error_code) == ("worker_lost", 3, "WORKER_LOST")
    assert AgentMessage.model_validate_json(letter.body) == poison
    assert letter.first_failed_at < letter.last_failed_at
    await wait_until(lambda: survivor.call("records"))
    assert await survivor.call("records") == [[2, 1, False]]


async def test_no_message_is_lost_while_members_are_killed(
    url: str, bus: KombuMessageBus, processes: AsyncExitStack, group: str, tmp_path: Path
) -> None:
    count, channel, log, handled = 400, unique("storm"), tmp_path / "handled", set[int]()
    log.touch()

    async def survivor(message: AgentMessage) -> None:
        handled.add(message.payload["number"])

    victims = [await a_member(processes, url) for _ in range(4)]
    for victim in victims:
        await victim.call("member", channel=channel, group=group, then="yield", log=str(log))
    await asyncio.gather(*(bus.publish(channel, a_message(number)) for number in range(count)))
    for number, victim in enumerate(victims, start=1):
        until = number * count // 10
        await wait_until(lambda until=until: len(log.read_text().splitlines()) >= until)  # type: ignore[misc]
        await victim.kill()
    before = {int(line) for line in log.read_text().splitlines()}
    assert before < set(range(count))
    await bus.subscribe(channel, survivor, group=group)
    await wait_until(lambda: len(before | handled) == count, timeout=30)


async def test_a_slow_callback_is_not_run_twice(url: str, group: str) -> None:
    channel, inboxes = unique("slow"), [Inbox(), Inbox()]
    hurry: dict[str, Any] = {"visibility_timeout": 0.4, "touch_interval": 0.1, "restore_interval": 0.1}
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    async with KombuMessageBus(url, **hurry) as first, KombuMessageBus(url, **hurry) as second:
        for bus, inbox in ((first, inboxes[0]), (second, inboxes[1])):

            async def slow(message: AgentMessage, inbox: Inbox = inbox) -> None:
                await inbox(message)
                if message.payload["number"] == 1:
                    until = loop.time() + 2.0
                    await wait_until(lambda: loop.time() >= until)
                    ended.set()

            await bus.subscribe(channel, slow, group=group)
        await first.publish(channel, a_message(1))
        await asyncio.wait_for(ended.wait(), 20)
        await first.publish(channel, a_message(2))
        await wait_until(lambda: 2 in inboxes[0].numbers + inboxes[1].numbers)
    assert sorted(inboxes[0].numbers + inboxes[1].numbers) == [1, 2]


async def test_a_disconnecting_process_gives_back_what_it_has_at_once(
    url: str, processes: AsyncExitStack, group: str
) -> None:
    channel, inbox = unique("leaving"), Inbox()
    patient: dict[str, Any] = {"visibility_timeout": 600.0, "restore_interval": 600.0}
    async with KombuMessageBus(url, **patient) as bus:
        other = await a_member(processes, url, **patient)
        await other.call("member", channel=channel, group=group, then="hang")
        await bus.publish(channel, a_message(1))
        await wait_until(lambda: other.call("records"))
        await bus.subscribe(channel, inbox, group=group)
        await other.call("disconnect")
        await inbox.has(1)
        assert inbox.messages[0].metadata == {"attempt": 1, "redelivered": True}


async def test_members_of_several_processes_share_the_work_and_the_repetitions(
    url: str, valkey_url: str, bus: KombuMessageBus, processes: AsyncExitStack, group: str
) -> None:
    channel, repeated = unique("several"), a_message(0)
    members = [await a_member(processes, url, dedup_url=valkey_url) for _ in range(2)]
    for member in members:
        await member.call("member", channel=channel, group=group, then="yield", deduplicate=60)
    for _ in range(10):
        await bus.publish(channel, repeated)
    await asyncio.gather(*(bus.publish(channel, a_message(number)) for number in range(1, 101)))

    async def all_records() -> list[list[int]]:
        return [[number for number, _, _ in await member.call("records")] for member in members]

    async def complete() -> bool:
        return sum(map(len, await all_records())) >= 101

    await wait_until(complete, timeout=20)
    first, second = await all_records()
    assert sorted(first + second) == list(range(101))
    assert first
    assert second


async def test_a_killed_members_message_is_no_repetition(
    url: str, valkey_url: str, bus: KombuMessageBus, processes: AsyncExitStack, group: str
) -> None:
    channel, inbox = unique("lost"), Inbox()
    victim = await a_member(processes, url, dedup_url=valkey_url)
    await victim.call("member", channel=channel, group=group, then="hang", deduplicate=60)
    await bus.publish(channel, a_message(1))
    await wait_until(lambda: victim.call("records"))
    await victim.kill()
    await bus.subscribe(channel, inbox, group=group, deduplicate=60)
    await inbox.has(1)


async def test_a_lost_connection_loses_no_message_and_dedup_keeps_it_from_running_twice(
    url: str, valkey_url: str, group: str
) -> None:
    channel, begun, may_end, ended = unique("cut"), Inbox(), asyncio.Event(), Inbox()

    async def member(message: AgentMessage) -> None:
        await begun(message)
        if message.payload["number"] == 1:
            await may_end.wait()
        await ended(message)

    options: dict[str, Any] = {"visibility_timeout": 60.0, "dedup_url": valkey_url}
    async with Proxy(url) as proxy, KombuMessageBus(proxy.url, **options) as bus:
        await bus.subscribe(channel, member, group=group, deduplicate=60)
        await bus.publish(channel, a_message(1))
        await begun.has(1)
        await proxy.stop()
        await asyncio.to_thread(_wait_for_trouble, bus)
        may_end.set()
        await ended.has(1)
        await proxy.start()
        await bus.publish(channel, a_message(2))
        await wait_until(lambda: 2 in ended.numbers, timeout=30)
        assert ended.numbers == [1, 2]


def _wait_for_trouble(bus: KombuMessageBus) -> None:
    from tests.support.waiting import wait_until_sync

    assert bus._session is not None
    thread = bus._session.groups._thread
    assert thread is not None
    wait_until_sync(lambda: thread.trouble, timeout=30)


async def test_waiting_messages_and_retries_survive_a_restart_of_valkey(tmp_path: Path, group: str) -> None:
    channel, inbox, failed = unique("restart"), Inbox(), Inbox()
    policy = RetryPolicy(initial_delay=0.5, max_delay=0.5)

    async def failing(message: AgentMessage) -> None:
        await failed(message)
        raise RuntimeError("not now")

    server = EmbeddedServer(tmp_path)
    await asyncio.to_thread(server.start)
    try:
        async with KombuMessageBus(server.url, retry_policy=policy) as bus:
            await bus.subscribe(channel, failing, group=group)
            await bus.publish(channel, a_message(1))
            await failed.has(1)
        async with KombuMessageBus(server.url) as bus:
            await bus.publish(channel, a_message(2))
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        async with KombuMessageBus(server.url) as bus:
            await bus.publish(channel, a_message(3))
            await bus.subscribe(channel, inbox, group=group)
            await wait_until(lambda: len(inbox.messages) == 3)
        assert sorted(inbox.numbers) == [1, 2, 3]
    finally:
        await asyncio.to_thread(server.stop)
