"""Groups that give nobody a message twice, for every implementation."""

from conductor.core.channels import DLQ
from conductor.core.exceptions import ConductorError
from conductor.orchestration.message_bus import MessageBus
from tests.broker.group_contract.conftest import Failing, letters_about
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until


async def test_a_repeated_message_is_given_to_nobody(bus: MessageBus, group: str) -> None:
    channel, one, other, message = unique("repeated"), Inbox(), Inbox(), a_message(1)
    await bus.subscribe(channel, one, group=group, deduplicate=60)
    await bus.subscribe(channel, other, group=group, deduplicate=60)
    for _ in range(4):
        await bus.publish(channel, message)
    await bus.publish(channel, a_message(2))
    await bus.publish(channel, a_message(3))
    await wait_until(lambda: {2, 3} <= {*one.numbers, *other.numbers})
    assert sorted([*one.numbers, *other.numbers]) == [1, 2, 3]


async def test_after_the_window_a_repeated_message_is_given_again(bus: MessageBus, group: str) -> None:
    channel, inbox, message = unique("window"), Inbox(), a_message(1)
    await bus.subscribe(channel, inbox, group=group, deduplicate=0.05)
    await bus.publish(channel, message)
    await inbox.has(1)

    async def given_again() -> bool:
        await bus.publish(channel, message)
        return len(inbox.messages) > 1

    await wait_until(given_again, interval=0.1)


async def test_a_retry_is_no_repetition(bus: MessageBus, group: str) -> None:
    channel, member = unique("retried"), Failing(RuntimeError("twice"), times=2)
    await bus.subscribe(channel, member, group=group, deduplicate=60)
    await bus.publish(channel, a_message(1))
    await member.has(1, 1, 1)


async def test_a_message_that_ended_as_a_dead_letter_may_be_sent_again(bus: MessageBus, group: str) -> None:
    channel, dead, sent = unique("resent"), Inbox(), a_message(1)
    member = Failing(ConductorError("wrong", "BAD_INPUT"), times=1)
    await bus.subscribe(DLQ, dead)
    await bus.subscribe(channel, member, group=group, deduplicate=60)
    await bus.publish(channel, sent)
    await wait_until(lambda: letters_about(dead, sent))
    await bus.publish(channel, sent)
    await member.has(1, 1)


async def test_each_group_has_its_own_repetitions(bus: MessageBus, group: str) -> None:
    channel, inboxes, message = unique("own"), [Inbox(), Inbox()], a_message(1)
    for number, inbox in enumerate(inboxes):
        await bus.subscribe(channel, inbox, group=f"{group}-{number}", deduplicate=60)
    await bus.publish(channel, message)
    for inbox in inboxes:
        await inbox.has(1)
