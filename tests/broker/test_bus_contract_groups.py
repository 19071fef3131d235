"""The promises of shared subscriptions, for every implementation of the message bus."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.channels import DLQ
from conductor.core.enums import MessageType
from conductor.core.exceptions import ConductorError, MessageBusError
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until

QUICK = RetryPolicy(max_retries=2, initial_delay=0.05, max_delay=0.1)

GroupBusMaker = Callable[..., MessageBus]


@pytest.fixture(params=["memory", "valkey", "rabbitmq"])
def make_bus(request: pytest.FixtureRequest) -> GroupBusMaker:
    if request.param == "memory":
        return lambda retry_policy=QUICK: InMemoryMessageBus(retry_policy=retry_policy)
    url = request.getfixturevalue(f"{request.param}_url")
    dedup_url = request.getfixturevalue("valkey_url")
    return lambda retry_policy=QUICK: KombuMessageBus(url, retry_policy=retry_policy, dedup_url=dedup_url)


@pytest.fixture
async def bus(make_bus: GroupBusMaker) -> AsyncIterator[MessageBus]:
    async with make_bus() as bus:
        yield bus


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


class Failing(Inbox):
    """A callback that keeps what it is given and fails the first times."""

    def __init__(self, error: BaseException, times: int = 1000) -> None:
        super().__init__()
        self._error = error
        self._left = times

    async def __call__(self, message: AgentMessage) -> None:
        await super().__call__(message)
        if self._left > 0:
            self._left -= 1
            raise self._error


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


def letters_about(inbox: Inbox, message: AgentMessage) -> list[dict[str, Any]]:
    facts = [announced.metadata["dead_letter"] for announced in inbox.messages]
    return [fact for fact in facts if fact["message_id"] == message.message_id]


# One message, one member.


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


# Nobody there.


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


# Failing.


async def test_a_failed_message_is_tried_again_and_says_so(bus: MessageBus, group: str) -> None:
    channel, member = unique("again"), Failing(RuntimeError("once"), times=1)
    sent = a_message(1, metadata={"note": "kept", "attempt": "the publisher's own"})
    await bus.subscribe(channel, member, group=group)
    await bus.publish(channel, sent)
    await member.has(1, 1)
    assert [message.metadata for message in member.messages] == [
        {"note": "kept", "attempt": 1, "redelivered": False},
        {"note": "kept", "attempt": 2, "redelivered": True},
    ]
    assert member.messages[1].model_copy(update={"metadata": {}}) == sent.model_copy(update={"metadata": {}})


async def test_a_waiting_retry_holds_nobody_up(make_bus: GroupBusMaker, group: str) -> None:
    policy = RetryPolicy(max_retries=1, initial_delay=2.0, max_delay=2.0)
    async with make_bus(retry_policy=policy) as bus:
        channel, inbox, failed = unique("delayed"), Inbox(), False

        async def member(message: AgentMessage) -> None:
            nonlocal failed
            await inbox(message)
            if message.payload["number"] == 0 and not failed:
                failed = True
                raise RuntimeError("later")

        await bus.subscribe(channel, member, group=group)
        for number in range(5):
            await bus.publish(channel, a_message(number))
        await inbox.has(0, 1, 2, 3, 4, 0)


@pytest.mark.parametrize(
    ("error", "reason", "attempts"),
    [
        (RuntimeError("always"), "retries_exhausted", 3),
        (ConductorError("slow", "LLM_TIMEOUT"), "retries_exhausted", 3),
        (ConductorError("wrong", "BAD_INPUT"), "rejected", 1),
        (asyncio.CancelledError(), "retries_exhausted", 3),
    ],
)
async def test_what_fails_for_good_becomes_a_dead_letter(
    bus: MessageBus, group: str, error: BaseException, reason: str, attempts: int
) -> None:
    channel, member, dead = unique("doomed"), Failing(error), Inbox()
    await bus.subscribe(DLQ, dead)
    await bus.subscribe(channel, member, group=group)
    sent = a_message(1)
    await bus.publish(channel, sent)
    await wait_until(lambda: letters_about(dead, sent))
    (facts,) = letters_about(dead, sent)
    assert (facts["reason"], facts["attempts"], facts["channel"]) == (reason, attempts, channel)
    assert facts["agent_id"] is None
    assert group in facts["queue"]
    assert facts["error_type"] == type(error).__name__
    assert facts["first_failed_at"] <= facts["last_failed_at"]
    assert member.numbers == [1] * attempts
    assert [message.metadata["attempt"] for message in member.messages] == list(range(1, attempts + 1))


async def test_a_group_of_dead_letters_that_fails_does_not_feed_itself(bus: MessageBus, group: str) -> None:
    member = Failing(ConductorError("cannot", "BAD_INPUT"))
    await bus.subscribe(DLQ, member, group=group)
    first, second = a_message(1), a_message(2)
    await bus.publish(DLQ, first)
    await bus.publish(DLQ, second)

    def ours() -> list[str]:
        return [message.message_id for message in member.messages]

    try:
        await wait_until(lambda: second.message_id in ours())
        about = [message.metadata.get("dead_letter", {}).get("message_id") for message in member.messages]
        assert first.message_id not in about
    finally:
        await bus.delete_group(DLQ, group)


# Repetitions.


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


# Misuse.


@pytest.mark.parametrize("name", ["", "two words", "a:b", "a*", "x" * 129, 7])
async def test_a_bad_group_name_is_refused(bus: MessageBus, name: Any) -> None:
    for refused in (
        bus.subscribe(unique("bad"), Inbox(), group=name),
        bus.delete_group(unique("bad"), name),
    ):
        with pytest.raises(MessageBusError) as caught:
            await refused
        assert caught.value.error_code == "INVALID_GROUP"


@pytest.mark.parametrize("window", [0, -1, float("nan"), float("inf"), True, "60", 10**12])
async def test_a_bad_window_is_refused(bus: MessageBus, group: str, window: Any) -> None:
    with pytest.raises(MessageBusError) as caught:
        await bus.subscribe(unique("bad"), Inbox(), group=group, deduplicate=window)
    assert caught.value.error_code == "INVALID_DEDUPLICATION"
    assert repr(window) in caught.value.message


async def test_a_window_without_a_group_is_refused(bus: MessageBus) -> None:
    with pytest.raises(MessageBusError) as caught:
        await bus.subscribe(unique("alone"), Inbox(), deduplicate=60)
    assert caught.value.error_code == "INVALID_DEDUPLICATION"


async def test_groups_need_a_connected_bus(make_bus: GroupBusMaker, group: str) -> None:
    bus = make_bus()
    for refused in (bus.subscribe("any", Inbox(), group=group), bus.delete_group("any", group)):
        with pytest.raises(MessageBusError) as caught:
            await refused
        assert caught.value.error_code == "BUS_NOT_CONNECTED"


async def test_a_member_can_answer_a_request(bus: MessageBus, group: str) -> None:
    channel = unique("asked")

    async def answer(message: AgentMessage) -> None:
        response = message.create_response("member", MessageType.FEEDBACK, {"number": 42})
        await bus.publish("conductor:response", response)

    await bus.subscribe(channel, answer, group=group)
    response = await bus.request(channel, a_message(41), timeout=20)
    assert response.payload == {"number": 42}
