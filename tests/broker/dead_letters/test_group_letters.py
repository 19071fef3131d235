"""Dead letters and groups of subscribers."""

from collections.abc import AsyncIterator

import pytest

from conductor.client import Conductor
from conductor.core.channels import DLQ
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from tests.support.buses import a_message, unique
from tests.support.waiting import wait_until


@pytest.fixture(params=["valkey", "rabbitmq"])
async def conductor(request: pytest.FixtureRequest, valkey_url: str) -> AsyncIterator[Conductor]:
    broker = request.getfixturevalue(f"{request.param}_url")
    redis = f"{valkey_url.rpartition('/')[0]}/11"
    config = ConductorConfig(
        broker_url=redis if request.param == "valkey" else broker,
        redis={"url": redis},
        errors={"retry": {"max_retries": 1, "initial_delay": 0.01}},
    )
    async with Conductor(config) as conductor:
        yield conductor


async def test_what_a_group_gave_up_is_given_to_it_again_when_it_is_replayed(conductor: Conductor) -> None:
    channel, broken = unique("orders"), [True]
    seen: list[tuple[int, int]] = []

    async def member(message: AgentMessage) -> None:
        seen.append((message.payload["number"], message.metadata["attempt"]))
        if broken[0]:
            raise ConductorError("not now", "TRANSIENT_ERROR")

    await conductor.bus.subscribe(channel, member, group="shop")
    message = a_message(7)
    await conductor.bus.publish(channel, message)

    async def filed() -> str | None:
        letters = await conductor.dead_letters.list(limit=None)
        return next((one.letter_id for one in letters if one.message_id == message.message_id), None)

    letter_id = await wait_until(filed)
    assert seen == [(7, 1), (7, 2)]
    broken[0] = False
    report = await conductor.dead_letters.replay(letter_id)
    assert report.replayed == [letter_id]
    await wait_until(lambda: len(seen) == 3)
    assert seen[2] == (7, 1)
    assert await conductor.dead_letters.get(letter_id) is None
    await conductor.bus.delete_group(channel, "shop")


async def test_a_group_may_listen_for_letters(conductor: Conductor) -> None:
    """Also for those that processes without a bus announce."""
    from conductor.broker.dead_letter_sender import DeadLetterSender
    from tests.support.letters import a_letter

    heard: list[AgentMessage] = []

    async def listen(message: AgentMessage) -> None:
        heard.append(message)

    await conductor.bus.subscribe(DLQ, listen, group="operators")
    letter = a_letter()
    sender = DeadLetterSender(conductor.addresses.broker_url, 5, 5)
    sender.send(letter)
    sender.close()
    await wait_until(lambda: heard)
    assert heard[0].metadata["dead_letter"]["letter_id"] == letter.letter_id
    await conductor.bus.delete_group(DLQ, "operators")
    await conductor.dead_letters.purge(letter.letter_id)
