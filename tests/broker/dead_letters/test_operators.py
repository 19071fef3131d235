"""Several operators at once, and such as are cancelled or killed: each letter is replayed once."""

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
from kombu import Connection

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.dead_letters import publish_dead_letter
from conductor.broker.letter_shelf_redis import RedisShelf
from conductor.broker.reopening import Reopening
from conductor.broker.replay import replay_of
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.transport import kombu_connection
from conductor.core.config import ConductorConfig
from tests.broker.dead_letters.conftest import QueueMaker
from tests.support.cli import Background
from tests.support.letters import (
    a_letter,
    a_task,
    an_agent,
    empty,
    ids,
    many_letters,
    put,
    record_of,
    set_record,
    take_all,
    task_letter,
)
from tests.support.projects import write_files
from tests.support.waiting import wait_until


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
    queue: DeadLetterQueue, addresses: Addresses, records: redis.Redis
) -> None:
    agent = an_agent()
    letter = task_letter(addresses, a_task(), agent)
    put(addresses.broker_url, letter)
    set_record(records, letter.task_id, "FAILURE", "before")
    dead = Reopening(ConductorConfig(), addresses.redis_url)
    await dead.reopen(letter.task_id or "", EXECUTE_TASK, letter.letter_id, letter.queue or "")
    await dead.close()
    assert (await queue.replay(all=True)).replayed == [letter.letter_id]
    [message] = take_all(addresses.broker_url, topology.agent_queue(agent).name)
    assert message.headers["id"] == letter.task_id


@pytest.mark.parametrize("status", ["STARTED", "RETRY", "SUCCESS", "FAILURE"])
async def test_an_operator_who_died_after_sending_does_not_make_the_task_run_twice(
    queue: DeadLetterQueue, addresses: Addresses, records: redis.Redis, status: str
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


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("before", ["FAILURE", None])
async def test_operators_who_all_come_too_late_leave_the_task_as_it_was(
    addresses: Addresses, records: redis.Redis, first: int, before: str | None
) -> None:
    """Somebody purged the letter after both had reopened the task."""
    task_id, run = an_agent(), "the letter"
    if before:
        set_record(records, task_id, before, "before")
    found = record_of(records, task_id)
    async with _operators(addresses) as operators:
        opened = [await one.reopen(task_id, EXECUTE_TASK, run, "") for one in operators]
        await operators[first].restore(opened[first])
        record = record_of(records, task_id)
        assert record is not None
        assert (record["status"], record["kwargs"]) == ("PENDING", {"run": run})
        await operators[1 - first].restore(opened[1 - first])
    assert record_of(records, task_id) == found


@pytest.mark.parametrize("sender", [0, 1])
async def test_an_operator_who_comes_too_late_takes_nothing_back_from_who_sent_the_letter(
    addresses: Addresses, records: redis.Redis, sender: int
) -> None:
    task_id, run = an_agent(), "the letter"
    set_record(records, task_id, "FAILURE", "before")
    async with _operators(addresses) as operators:
        opened = [await one.reopen(task_id, EXECUTE_TASK, run, "") for one in operators]
        await operators[1 - sender].restore(opened[1 - sender])
        record = record_of(records, task_id)
        assert record is not None
        assert (record["status"], record["kwargs"]) == ("PENDING", {"run": run})
        set_record(records, task_id, "STARTED", run)
        await operators[sender].restore(opened[sender])
    record = record_of(records, task_id)
    assert record is not None
    assert (record["status"], record["kwargs"]) == ("STARTED", {"run": run})


@contextlib.asynccontextmanager
async def _operators(addresses: Addresses) -> AsyncIterator[list[Reopening]]:
    operators = [Reopening(ConductorConfig(), addresses.redis_url) for _ in range(2)]
    yield operators
    for one in operators:
        await one.close()
