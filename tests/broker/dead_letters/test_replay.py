"""Replaying dead letters, the same on every broker."""

import pytest
import redis

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.dead_letters import encode_body
from conductor.broker.task_message import SENT_AT
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.topology import TRIAL_HEADER
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import StateError
from conductor.core.models import TaskDefinition
from tests.broker.dead_letters.conftest import QueueMaker
from tests.support.letters import (
    a_letter,
    a_task,
    an_agent,
    empty,
    ids,
    put,
    record_of,
    set_record,
    take_all,
    task_letter,
)


async def test_an_empty_queue_has_nothing(queue: DeadLetterQueue) -> None:
    assert await queue.list() == []
    assert await queue.count() == await queue.count(reason="expired") == 0
    assert await queue.get("nobody-knows") is None
    report = await queue.replay(all=True)
    assert (report.replayed, report.refused) == ([], {})
    assert await queue.purge(all=True) == 0


async def test_a_replayed_task_begins_anew_under_its_id(
    queue: DeadLetterQueue, addresses: Addresses, records: redis.Redis
) -> None:
    task, agent = a_task(), an_agent()
    letter = task_letter(addresses, task, agent)
    put(addresses.broker_url, letter)
    set_record(records, task.task_id, "FAILURE", f"first-{task.task_id}")
    report = await queue.replay(letter.letter_id)
    assert (report.replayed, report.refused, report.unreadable) == ([letter.letter_id], {}, 0)
    assert await queue.count() == 0
    [message] = take_all(addresses.broker_url, topology.agent_queue(agent).name)
    arguments, keywords, _ = message.decode()
    assert TaskDefinition.model_validate(arguments[0]) == task
    assert keywords == {"run": letter.letter_id}
    sent_at = message.headers[SENT_AT]
    same = dict(letter.headers) | {"retries": 0, "eta": None, "expires": None, SENT_AT: sent_at}
    assert message.headers == same
    assert sent_at > letter.headers[SENT_AT]
    assert message.headers["timelimit"] == [60, None]
    assert message.properties["correlation_id"] == letter.properties["correlation_id"]
    assert message.properties["delivery_mode"] == 2
    assert message.delivery_info["routing_key"] == topology.agent_queue(agent).name
    record = record_of(records, task.task_id)
    assert record is not None
    assert (record["status"], record["kwargs"]) == ("PENDING", {"run": letter.letter_id})
    assert (record["title"], record["queue"]) == (task.name, topology.agent_queue(agent).name)


async def test_a_replay_is_chosen_by_the_id_of_the_task_and_by_filters(
    queue: DeadLetterQueue, addresses: Addresses
) -> None:
    agent = an_agent()
    letters = [task_letter(addresses, a_task(), agent, reason=r) for r in ("expired", "expired", "rejected")]
    put(addresses.broker_url, *letters)
    assert (await queue.replay(letters[1].task_id)).replayed == [letters[1].letter_id]
    assert (await queue.replay(reason="expired")).replayed == [letters[0].letter_id]
    assert ids(await queue.list()) == [letters[2].letter_id]
    found = take_all(addresses.broker_url, topology.agent_queue(agent).name)
    assert [message.headers["id"] for message in found] == [letters[1].task_id, letters[0].task_id]


async def test_a_letter_that_is_there_twice_is_replayed_once(
    queue: DeadLetterQueue, addresses: Addresses
) -> None:
    """Its sender died between sending it and noting that, and whoever took over sent it again."""
    agent = an_agent()
    letter, other = (task_letter(addresses, a_task(), agent) for _ in range(2))
    put(addresses.broker_url, letter, other, letter)
    report = await queue.replay(all=True)
    assert (report.replayed, report.refused) == ([letter.letter_id, other.letter_id], {})
    assert await queue.count() == 0
    found = take_all(addresses.broker_url, topology.agent_queue(agent).name)
    assert [message.headers["id"] for message in found] == [letter.task_id, other.task_id]


async def test_a_letter_that_is_there_twice_and_cannot_be_replayed_stays(
    queue: DeadLetterQueue, url: str
) -> None:
    letter = a_letter(queue=None)
    put(url, letter, letter)
    report = await queue.replay(all=True)
    assert (report.replayed, list(report.refused)) == ([], [letter.letter_id])
    assert await queue.count() == 2
    assert await queue.list() == [letter]


async def test_another_message_goes_back_as_it_was(queue: DeadLetterQueue, url: str) -> None:
    name = f"conductor.agent.{an_agent()}"
    properties = {"correlation_id": "c-1", "reply_to": "somebody", "content_type": "application/json"}
    letter = a_letter(
        queue=name,
        body='{"text": "grüße"}',
        headers={"mine": "yes", TRIAL_HEADER: 4},
        properties=properties,
    )
    put(url, letter)
    assert (await queue.replay(all=True)).replayed == [letter.letter_id]
    [message] = take_all(url, name)
    assert message.decode() == {"text": "grüße"}
    assert message.headers == {"mine": "yes"}
    assert (message.properties["correlation_id"], message.properties["reply_to"]) == ("c-1", "somebody")


@pytest.mark.parametrize("body", [b"\xff\xfe\x00nothing to read", b"{not json", b""])
async def test_a_body_that_nobody_can_read_goes_back_byte_for_byte(
    queue: DeadLetterQueue, url: str, body: bytes
) -> None:
    name = f"conductor.agent.{an_agent()}"
    text, encoding = encode_body(body)
    headers = {"task": EXECUTE_TASK, "id": "t"}
    letter = a_letter(reason="undecodable", queue=name, body=text, body_encoding=encoding, headers=headers)
    put(url, letter)
    assert await queue.list() == [letter]
    assert (await queue.replay(all=True)).replayed == [letter.letter_id]
    [message] = take_all(url, name)
    raw = message.body if isinstance(message.body, bytes) else message.body.encode()
    assert raw == body


async def test_a_replayed_message_keeps_its_priority_on_redis(
    valkey_url: str, make_queue: QueueMaker
) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/5"
    empty(url)
    queue = DeadLetterQueue(ConductorConfig(), url, url)
    urgent = a_letter(properties={"priority": 6})
    put(url, urgent)
    await queue.replay(all=True)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.keys(f"{urgent.queue}*") == [f"{urgent.queue}\x06\x166"]
        client.flushdb()


async def test_a_task_that_was_dispatched_again_is_not_disturbed(
    queue: DeadLetterQueue, addresses: Addresses, records: redis.Redis
) -> None:
    letter = task_letter(addresses, a_task(), an_agent())
    put(addresses.broker_url, letter)
    set_record(records, letter.task_id, "STARTED", "another run")
    report = await queue.replay(letter.letter_id)
    assert report.replayed == []
    assert "was dispatched again and has not ended (STARTED)" in report.refused[letter.letter_id]
    assert await queue.list() == [letter]
    record = record_of(records, letter.task_id)
    assert record is not None
    assert record["kwargs"] == {"run": "another run"}


async def test_on_rabbitmq_properties_that_it_does_not_take_keep_the_letter(
    rabbitmq_url: str, valkey_url: str
) -> None:
    """As they may come from a transport that takes them."""
    empty(rabbitmq_url)
    queue = DeadLetterQueue(ConductorConfig(), rabbitmq_url, valkey_url)
    odd = [a_letter(properties={"reply_to": "r" * 300}), a_letter(properties={"priority": 1000})]
    fine = a_letter(properties={"priority": "high"})
    put(rabbitmq_url, *odd, fine)
    report = await queue.replay(all=True)
    assert report.replayed == [fine.letter_id]
    assert all("none that RabbitMQ takes" in reason for reason in report.refused.values())
    assert await queue.list() == odd


async def test_without_the_results_a_task_stays_and_the_error_says_what_was_replayed(
    addresses: Addresses,
) -> None:
    event, task = a_letter(), task_letter(addresses, a_task(), an_agent())
    put(addresses.broker_url, event, task)
    config = ConductorConfig(bus={"connect_timeout": 0.5, "publish_timeout": 0.5})
    queue = DeadLetterQueue(config, addresses.broker_url, "redis://127.0.0.1:1/0")
    with pytest.raises(StateError) as caught:
        await queue.replay(all=True)
    assert caught.value.error_code == "STATE_UNAVAILABLE"
    assert caught.value.details["replayed"] == [event.letter_id]
    assert await queue.list() == [task]


async def test_a_letter_without_a_way_back_stays_and_says_why(queue: DeadLetterQueue, url: str) -> None:
    letter = a_letter(queue=None)
    put(url, letter)
    report = await queue.replay(all=True)
    assert report.refused == {letter.letter_id: "nobody knows the queue it came from"}
    assert await queue.list() == [letter]


async def test_on_rabbitmq_a_queue_that_is_gone_keeps_the_letter_and_the_task_as_they_were(
    rabbitmq_url: str, valkey_url: str
) -> None:
    addresses = Addresses(rabbitmq_url, f"{valkey_url.rpartition('/')[0]}/6")
    empty(rabbitmq_url)
    queue = DeadLetterQueue(ConductorConfig(), addresses.broker_url, addresses.redis_url)
    with redis.Redis.from_url(addresses.redis_url) as records:
        lost = task_letter(addresses, a_task(), "a", queue="gone")
        fine = task_letter(addresses, a_task(), an_agent())
        unknown = task_letter(addresses, a_task(), "a", queue="gone too")
        put(rabbitmq_url, lost, unknown, fine)
        set_record(records, lost.task_id, "FAILURE", "before")
        before = records.get(f"celery-task-meta-{lost.task_id}")
        report = await queue.replay(all=True)
        assert report.replayed == [fine.letter_id]
        assert report.refused[lost.letter_id] == "the queue gone it came from is not there any more"
        assert ids(await queue.list()) == [lost.letter_id, unknown.letter_id]
        assert records.get(f"celery-task-meta-{lost.task_id}") == before
        assert records.get(f"celery-task-meta-{unknown.task_id}") is None
    await queue.close()
