"""What becomes of messages that members of a group fail to handle, for every implementation."""

import asyncio

import pytest

from conductor.core.channels import DLQ
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.retry import RetryPolicy
from conductor.orchestration.message_bus import MessageBus
from tests.broker.group_contract.conftest import Failing, GroupBusMaker, letters_about
from tests.support.buses import Inbox, a_message, unique
from tests.support.waiting import wait_until


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
