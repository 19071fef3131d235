"""The promises of shared subscriptions about who gets a message, for every implementation."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from conductor.core.enums import MessageType
from conductor.core.messages import AgentMessage
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from tests.broker.group_contract.conftest import GroupBusMaker
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until


class Slow(Inbox):
    """A callback that keeps what it is given and does not return before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, message: AgentMessage) -> None:
        await super().__call__(message)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_each_message_goes_to_one_member_and_all_members_work(bus: MessageBus, group: str) -> None:
    channel, members, done = unique("shared"), [Inbox(), Inbox(), Inbox()], asyncio.Event()
    together = asyncio.Barrier(3)

    def member(inbox: Inbox) -> Callable[[AgentMessage], Any]:
        async def work(message: AgentMessage) -> None:
            await inbox(message)
            if message.payload["number"] < 3:
                await together.wait()  # nobody goes on before each of the three has one
            if sum(len(each.messages) for each in members) == 30:
                done.set()

        return work

    for inbox in members:
        await bus.subscribe(channel, member(inbox), group=group)
    sending = [asyncio.ensure_future(bus.publish(channel, a_message(number))) for number in range(30)]
    async with asyncio.timeout(20):
        await done.wait()
        await asyncio.gather(*sending)
    assert sorted(number for each in members for number in each.numbers) == list(range(30))


async def test_one_member_handles_one_message_after_the_other_in_order(bus: MessageBus, group: str) -> None:
    channel, inbox, running, most = unique("serial"), Inbox(), 0, 0

    async def member(message: AgentMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await inbox(message)
        running -= 1

    await bus.subscribe(channel, member, group=group)
    await asyncio.gather(*(bus.publish(channel, a_message(number)) for number in range(50)))
    await inbox.has(*range(50))
    assert most == 1


async def test_groups_and_plain_subscribers_do_not_take_from_each_other(bus: MessageBus, group: str) -> None:
    channel, plain, one, other = unique("beside"), Inbox(), Inbox(), Inbox()
    await bus.subscribe(channel, plain)
    await bus.subscribe(channel, one, group=group)
    await bus.subscribe(channel, other, group=f"{group}-other")
    for number in range(3):
        await bus.publish(channel, a_message(number))
    for inbox in (plain, one, other):
        await inbox.has(0, 1, 2)


async def test_a_callback_may_be_a_plain_subscriber_and_a_member(bus: MessageBus, group: str) -> None:
    channel, inbox = unique("both"), Inbox()
    await bus.subscribe(channel, inbox)
    await bus.subscribe(channel, inbox, group=group)
    await bus.subscribe(channel, inbox, group=group)
    await bus.publish(channel, a_message(1))
    await bus.publish(channel, a_message(2))
    await wait_until(lambda: len(inbox.messages) >= 4)
    assert sorted(inbox.numbers) == [1, 1, 2, 2]


async def test_a_group_may_share_a_pattern(bus: MessageBus, group: str) -> None:
    base, inbox = unique("pattern"), Inbox()
    await bus.subscribe(f"{base}:a*c:*", inbox, group=group)
    for number, name in enumerate(["abc:x", "ab:x", "ac:", "abc", "a:b:c:d"]):
        await bus.publish(f"{base}:{name}", a_message(number))
    await inbox.has(0, 2, 4)


async def test_what_is_published_right_after_subscribing_is_received(
    make_bus: GroupBusMaker, bus: MessageBus, group: str
) -> None:
    async with make_bus() as publisher:
        other = bus if isinstance(bus, InMemoryMessageBus) else publisher
        for number in range(30):
            channel, inbox = unique("next"), Inbox()
            await bus.subscribe(channel, inbox, group=group)
            await other.publish(channel, a_message(number))
            await inbox.has(number)
            await bus.delete_group(channel, group)


async def test_messages_wait_while_there_is_no_member(bus: MessageBus, group: str) -> None:
    channel, before, after = unique("waiting"), Inbox(), Inbox()
    await bus.publish(channel, a_message(0))
    await bus.subscribe(channel, before, group=group)
    await bus.publish(channel, a_message(1))
    await before.has(1)
    await bus.unsubscribe(channel)
    for number in (2, 3):
        await bus.publish(channel, a_message(number))
    await bus.subscribe(channel, after, group=group)
    await after.has(2, 3)
    assert before.numbers == [1]
    assert [message.metadata["redelivered"] for message in after.messages] == [False, False]


async def test_a_deleted_group_keeps_nothing(bus: MessageBus, group: str) -> None:
    channel, before, after = unique("deleted"), Inbox(), Inbox()
    await bus.subscribe(channel, before, group=group)
    await bus.unsubscribe(channel)
    await bus.publish(channel, a_message(1))
    await bus.delete_group(channel, group)
    await bus.publish(channel, a_message(2))
    await bus.subscribe(channel, after, group=group)
    await bus.publish(channel, a_message(3))
    await after.has(3)
    assert before.numbers == []


async def test_deleting_a_group_leaves_plain_subscribers_and_other_groups(
    bus: MessageBus, group: str
) -> None:
    channel, plain, other, own = unique("kept"), Inbox(), Inbox(), Inbox()
    await bus.subscribe(channel, plain)
    await bus.subscribe(channel, other, group=f"{group}-other")
    await bus.subscribe(channel, own, group=group)
    await bus.delete_group(channel, group)
    await bus.delete_group(unique("unknown"), group)
    await bus.publish(channel, a_message(1))
    await plain.has(1)
    await other.has(1)
    assert own.numbers == []


async def test_an_expired_message_is_not_given_to_a_member(bus: MessageBus, group: str) -> None:
    channel, inbox, seen = unique("expired"), Inbox(), Inbox()
    await bus.subscribe(channel, seen, group=group)
    await bus.unsubscribe(channel)
    born = datetime.now(UTC) - timedelta(seconds=59.8)
    expiring = a_message(1, ttl_seconds=60, timestamp=born)
    await bus.publish(channel, expiring)
    await wait_until(expiring.is_expired)
    await bus.publish(channel, a_message(2))
    await bus.subscribe(channel, inbox, group=group)
    await inbox.has(2)


async def test_what_ran_when_its_bus_disconnected_goes_to_another_member_at_once(
    make_bus: GroupBusMaker, group: str
) -> None:
    channel, slow, inbox = unique("given-back"), Slow(), Inbox()
    first = make_bus()
    await first.connect()
    await first.subscribe(channel, slow, group=group)
    sent = a_message(1)
    sending = asyncio.ensure_future(first.publish(channel, sent))
    await wait_until(lambda: slow.messages)
    await first.disconnect()
    await asyncio.wait({sending})
    assert slow.cancelled == 1

    async with first if isinstance(first, InMemoryMessageBus) else make_bus() as second:
        await second.subscribe(channel, inbox, group=group)
        await inbox.has(1)
        assert inbox.messages[0].metadata == {"attempt": 1, "redelivered": True}


async def test_a_member_can_answer_a_request(bus: MessageBus, group: str) -> None:
    channel = unique("asked")

    async def answer(message: AgentMessage) -> None:
        response = message.create_response("member", MessageType.FEEDBACK, {"number": 42})
        await bus.publish("conductor:response", response)

    await bus.subscribe(channel, answer, group=group)
    response = await bus.request(channel, a_message(41), timeout=20)
    assert response.payload == {"number": 42}
