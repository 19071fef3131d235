"""Replaying dead letters, the same on every broker."""

import asyncio
import json
import signal
import threading
import uuid
from pathlib import Path

import pytest
import redis
from kombu import Connection

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.dead_letters import encode_body, publish_dead_letter
from conductor.broker.letter_shelf_redis import RedisShelf
from conductor.broker.reopening import Reopening
from conductor.broker.replay import replay_of
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.transport import kombu_connection
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import StateError
from conductor.core.models import TaskDefinition
from tests.broker.dead_letters.conftest import QueueMaker
from tests.support.cli import Background
from tests.support.letters import a_letter, empty, put, take_all, task_letter
from tests.support.projects import write_files
from tests.support.waiting import wait_until


def ids(letters: list[DeadLetter]) -> list[str]:
    return [letter.letter_id for letter in letters]


def a_task() -> TaskDefinition:
    return TaskDefinition(name="a task", input_data={"text": "grüße"})


def an_agent() -> str:
    return f"nobody-{uuid.uuid4().hex}"


def record_of(records: "redis.Redis[bytes]", task_id: str | None) -> dict[str, object] | None:
    raw = records.get(f"celery-task-meta-{task_id}")
    return None if raw is None else json.loads(raw)


def set_record(records: "redis.Redis[bytes]", task_id: str | None, status: str, run: str) -> None:
    record = {"status": status, "task_id": task_id, "kwargs": {"run": run}, "result": None}
    records.set(f"celery-task-meta-{task_id}", json.dumps(record), ex=60)


async def test_an_empty_queue_has_nothing(queue: DeadLetterQueue) -> None:
    assert await queue.list() == []
    assert await queue.count() == await queue.count(reason="expired") == 0
    assert await queue.get("nobody-knows") is None
    report = await queue.replay(all=True)
    assert (report.replayed, report.refused) == ([], {})
    assert await queue.purge(all=True) == 0


async def test_a_replayed_task_begins_anew_under_its_id(
    queue: DeadLetterQueue, addresses: Addresses, records: "redis.Redis[bytes]"
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
    same = dict(letter.headers) | {"retries": 0, "eta": None, "expires": None}
    assert message.headers == same
    assert message.headers["timelimit"] == [60, None]
    assert message.properties["correlation_id"] == letter.properties["correlation_id"]
    assert message.properties["delivery_mode"] == 2
    assert message.delivery_info["routing_key"] == topology.agent_queue(agent).name
    record = record_of(records, task.task_id)
    assert record is not None
    assert (record["status"], record["kwargs"]) == ("PENDING", {"run": letter.letter_id})


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


async def test_another_message_goes_back_as_it_was(queue: DeadLetterQueue, url: str) -> None:
    name = f"conductor.agent.{an_agent()}"
    properties = {"correlation_id": "c-1", "reply_to": "somebody", "content_type": "application/json"}
    letter = a_letter(
        queue=name,
        body='{"text": "grüße"}',
        headers={"mine": "yes", "conductor_attempt": 4},
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
    queue: DeadLetterQueue, addresses: Addresses, records: "redis.Redis[bytes]"
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


async def test_operators_who_replay_at_once_replay_each_letter_once(
    make_queue: QueueMaker, addresses: Addresses
) -> None:
    agent = an_agent()
    letters = many_letters(addresses, agent, 400)
    put(addresses.broker_url, *letters)
    reports = await asyncio.gather(*(make_queue(busy_timeout=60).replay(all=True) for _ in range(3)))
    replayed = [letter_id for report in reports for letter_id in report.replayed]
    assert sorted(replayed) == sorted(ids(letters))
    sent = [m.headers["id"] for m in take_all(addresses.broker_url, topology.agent_queue(agent).name)]
    assert sorted(sent) == sorted(letter.task_id or "" for letter in letters)
    assert await make_queue().count() == 0


async def test_an_operator_who_died_before_sending_leaves_the_letter_to_the_next(
    queue: DeadLetterQueue, addresses: Addresses, records: "redis.Redis[bytes]"
) -> None:
    agent = an_agent()
    letter = task_letter(addresses, a_task(), agent)
    put(addresses.broker_url, letter)
    set_record(records, letter.task_id, "FAILURE", "before")
    dead = Reopening(ConductorConfig(), addresses.redis_url)
    await dead.reopen(letter.task_id or "", EXECUTE_TASK, letter.letter_id)
    await dead.close()
    assert (await queue.replay(all=True)).replayed == [letter.letter_id]
    [message] = take_all(addresses.broker_url, topology.agent_queue(agent).name)
    assert message.headers["id"] == letter.task_id


@pytest.mark.parametrize("status", ["STARTED", "RETRY", "SUCCESS", "FAILURE"])
async def test_an_operator_who_died_after_sending_does_not_make_the_task_run_twice(
    queue: DeadLetterQueue, addresses: Addresses, records: "redis.Redis[bytes]", status: str
) -> None:
    agent = an_agent()
    letter = task_letter(addresses, a_task(), agent)
    with kombu_connection(addresses.broker_url) as connection:
        topology.agent_queue(agent)(connection.default_channel).declare()
    put(addresses.broker_url, letter)
    set_record(records, letter.task_id, status, letter.letter_id)
    assert (await queue.replay(all=True)).replayed == [letter.letter_id]
    assert await queue.count() == 0
    assert take_all(addresses.broker_url, topology.agent_queue(agent).name) == []
    record = record_of(records, letter.task_id)
    assert record is not None
    assert record["status"] == status


async def test_what_dies_again_meanwhile_waits_for_the_next_replay(queue: DeadLetterQueue, url: str) -> None:
    name = f"conductor.agent.{an_agent()}"
    letters = [a_letter(queue=name) for _ in range(400)]
    put(url, *letters)
    over = threading.Event()

    def die_again() -> int:
        died = 0
        with kombu_connection(url) as connection:
            channel, producer = connection.default_channel, connection.Producer()
            topology.work_queue(name)(channel).declare()  # type: ignore[misc]
            while not over.is_set() or died < len(letters):
                if channel.basic_get(name, no_ack=True) is not None:
                    publish_dead_letter(producer, a_letter(queue=name))
                    died += 1
        return died

    dying = asyncio.ensure_future(asyncio.to_thread(die_again))
    try:
        async with asyncio.timeout(60):
            report = await queue.replay(all=True)
    finally:
        over.set()
    assert report.replayed == ids(letters)
    assert await dying == len(letters)
    assert await queue.count() == len(letters)


def test_on_redis_a_letter_that_somebody_took_is_not_taken_again(valkey_url: str) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/5"
    empty(url)
    letter = a_letter()
    put(url, letter)
    with kombu_connection(url) as ours, kombu_connection(url) as theirs:
        shelf, other = RedisShelf(ours), RedisShelf(theirs)
        found = next(shelf.walk())
        assert shelf.holds(found)
        assert other.remove(next(other.walk()))
        assert not shelf.holds(found)
        assert not shelf.remove(found)
        assert not shelf.move(found, replay_of(letter, str(letter.queue)))
        assert ours.default_channel.client.llen(letter.queue) == 0


async def test_a_cancelled_replay_ends_after_the_letter_it_is_at(
    queue: DeadLetterQueue, addresses: Addresses
) -> None:
    agent = an_agent()
    letters = many_letters(addresses, agent, 600)
    put(addresses.broker_url, *letters)
    destination = topology.agent_queue(agent)
    with kombu_connection(addresses.broker_url) as connection:
        destination(connection.default_channel).declare()
        replaying = asyncio.ensure_future(queue.replay(all=True))
        await wait_until(lambda: moved(connection, destination.name), interval=0.001)
        replaying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replaying
    left = ids(await queue.list(limit=None))
    assert left
    sent = [message.headers["id"] for message in take_all(addresses.broker_url, destination.name)]
    assert sorted([*left, *(f"letter-{task_id}" for task_id in sent)]) == sorted(ids(letters))


@pytest.fixture
def directory(addresses: Addresses, tmp_path: Path) -> Path:
    """Where commands find these servers."""
    text = f"broker_url: {addresses.broker_url}\nredis: {{url: {addresses.redis_url}}}\n"
    return write_files(tmp_path, {"conductor.yaml": text})


def replay_all(directory: Path) -> Background:
    return Background(directory / "data", "dlq", "replay", "--all", "--json", cwd=directory)


def moved(connection: Connection, name: str) -> int:
    # An empty list is not there on Redis.
    passive = connection.transport.driver_type == topology.AMQP
    return int(connection.default_channel.queue_declare(name, passive=passive).message_count)


def many_letters(addresses: Addresses, agent: str, number: int) -> list[DeadLetter]:
    template, letters = task_letter(addresses, a_task(), agent), []
    for task_id in (f"{agent}-{count}" for count in range(number)):
        headers = {**template.headers, "id": task_id}
        changes = {"letter_id": f"letter-{task_id}", "task_id": task_id, "headers": headers}
        letters.append(template.model_copy(update=changes))
    return letters


async def test_two_processes_that_replay_at_once_replay_each_letter_once(
    queue: DeadLetterQueue, addresses: Addresses, directory: Path
) -> None:
    agent = an_agent()
    letters = many_letters(addresses, agent, 300)
    put(addresses.broker_url, *letters)
    operators = [replay_all(directory), replay_all(directory)]
    for operator in operators:
        assert operator.process.wait(90) in (0, 1), operator
    for operator in operators:
        operator.end()
    reports = [json.loads("".join(operator.out)) for operator in operators]
    assert sorted(reports[0]["replayed"] + reports[1]["replayed"]) == sorted(ids(letters))
    sent = [m.headers["id"] for m in take_all(addresses.broker_url, topology.agent_queue(agent).name)]
    assert sorted(sent) == sorted(letter.task_id or "" for letter in letters)
    assert await queue.count() == 0


async def test_an_operator_who_is_killed_loses_nothing(
    queue: DeadLetterQueue, addresses: Addresses, directory: Path
) -> None:
    agent = an_agent()
    letters = many_letters(addresses, agent, 1500)
    destination = topology.agent_queue(agent)
    with kombu_connection(addresses.broker_url) as connection:
        destination(connection.default_channel).declare()
        put(addresses.broker_url, *letters)
        operator = replay_all(directory)
        await wait_until(lambda: moved(connection, destination.name), timeout=60, interval=0.002)
        operator.process.kill()
        operator.process.wait()
    assert operator.process.returncode == -signal.SIGKILL, operator

    async def replayed_the_rest() -> bool:
        # RabbitMQ gives back what the dead one had when it sees that the connection is gone.
        await queue.replay(all=True)
        return await queue.count() == 0

    await wait_until(replayed_the_rest, timeout=60)
    sent = [message.headers["id"] for message in take_all(addresses.broker_url, destination.name)]
    assert set(sent) == {letter.task_id for letter in letters}
    # The one that was under way may have been sent without being taken away, on RabbitMQ.
    assert len(sent) - len(set(sent)) <= (1 if addresses.broker_url.startswith("amqp") else 0)
