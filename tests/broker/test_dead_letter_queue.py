"""The queue of dead letters, the same on every broker."""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.dead_letters import encode_body
from conductor.broker.reopening import Reopening
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.transport import kombu_connection
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.exceptions import ConfigurationError, MessageBusError
from conductor.core.models import TaskDefinition
from conductor.store.embedded import EmbeddedServer
from tests.support import rabbitmq
from tests.support.letters import a_letter, empty, put, put_raw, take_all, task_letter

QueueMaker = Callable[..., DeadLetterQueue]


@pytest.fixture(params=["valkey", "rabbitmq"])
def addresses(request: pytest.FixtureRequest, valkey_url: str) -> Addresses:
    server = valkey_url.rpartition("/")[0]
    broker = f"{server}/5" if request.param == "valkey" else request.getfixturevalue("rabbitmq_url")
    empty(broker)
    return Addresses(broker, f"{server}/6")


@pytest.fixture
def url(addresses: Addresses) -> str:
    return addresses.broker_url


@pytest.fixture
async def make_queue(addresses: Addresses) -> AsyncIterator[QueueMaker]:
    made: list[DeadLetterQueue] = []

    def make(**options: float) -> DeadLetterQueue:
        made.append(DeadLetterQueue(ConductorConfig(), addresses.broker_url, addresses.redis_url, **options))
        return made[-1]

    yield make
    for queue in made:
        await queue.close()


@pytest.fixture
def queue(make_queue: QueueMaker) -> DeadLetterQueue:
    return make_queue()


@pytest.fixture
def records(addresses: Addresses) -> "redis.Redis[bytes]":
    return redis.Redis.from_url(addresses.redis_url)


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


async def test_letters_are_listed_whole_oldest_first_and_stay(queue: DeadLetterQueue, url: str) -> None:
    letters = [a_letter(error_message=f"number {number}", traceback="...") for number in range(5)]
    put(url, *letters)
    for _ in range(3):
        assert await queue.list() == letters
    assert await queue.count() == 5


async def test_pages_follow_each_other(queue: DeadLetterQueue, url: str) -> None:
    letters = [a_letter() for _ in range(7)]
    put(url, *letters)
    pages = [await queue.list(limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [letter_id for page in pages for letter_id in ids(page)] == ids(letters)
    assert ids(await queue.list(limit=None, offset=1)) == ids(letters[1:])
    page = await queue.page(limit=2, offset=2)
    assert (ids(page.letters), page.total) == (ids(letters[2:4]), 7)


async def test_many_letters_come_in_the_order_they_came_in(queue: DeadLetterQueue, url: str) -> None:
    letters = [a_letter() for _ in range(650)]
    put(url, *letters)
    assert ids(await queue.list(limit=None)) == ids(letters)


async def test_filters_combine(queue: DeadLetterQueue, url: str) -> None:
    old = a_letter(7200, reason="expired", agent_id="coding-1", agent_type="coding")
    middle = a_letter(600, reason="expired", agent_id="coding-2", agent_type="coding")
    new = a_letter(5, reason="time_limit", agent_id="review-1", agent_type="review")
    put(url, old, middle, new)

    async def chosen(**filters: object) -> list[DeadLetter]:
        found = await queue.list(**filters)  # type: ignore[arg-type]
        assert await queue.count(**filters) == len(found)  # type: ignore[arg-type]
        return found

    assert await chosen(reason="expired") == [old, middle]
    assert await chosen(reason=DeadLetterReason.TIME_LIMIT) == [new]
    assert await chosen(agent="coding") == [old, middle]
    assert await chosen(agent="coding-2") == [middle]
    assert await chosen(older_than=3600) == [old]
    assert await chosen(newer_than=3600) == [middle, new]
    assert await chosen(older_than=60, newer_than=3600) == [middle]
    assert await chosen(reason="expired", agent="review") == []


async def test_a_letter_is_found_by_its_id_or_that_of_its_task(queue: DeadLetterQueue, url: str) -> None:
    first, second, other = a_letter(task_id="t-1"), a_letter(task_id="t-1"), a_letter(task_id="t-2")
    put(url, first, second, other)
    assert await queue.get(first.letter_id) == first
    assert await queue.get("t-1") == second
    assert await queue.get("t-3") is None


async def test_the_beginning_of_an_id_is_enough_where_it_tells_them_apart(
    queue: DeadLetterQueue, url: str
) -> None:
    one, two = a_letter(letter_id="abcdefgh-1"), a_letter(letter_id="abcdefgh-22")
    put(url, one, two)
    assert await queue.get("abcdefgh-2") == two
    assert await queue.get("abcdefgh-1") == one
    assert await queue.get("abcdefgh") is None
    assert await queue.get("abcd") is None
    assert await queue.purge("abcdefgh-2") == 1
    assert await queue.list() == [one]
    assert await queue.get("abcdefg") is None
    assert await queue.get("abcdefgh") == one


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"reason": "boredom"}, "reason: 'boredom' is none of retries_exhausted"),
        ({"older_than": -1}, "older_than: -1"),
        ({"newer_than": float("nan")}, "newer_than: nan"),
        ({"limit": -1}, "limit and offset: -1"),
    ],
)
async def test_a_filter_that_makes_no_sense_is_named(
    queue: DeadLetterQueue, filters: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        await queue.list(**filters)  # type: ignore[arg-type]


async def test_nothing_is_replayed_or_purged_by_saying_nothing(queue: DeadLetterQueue, url: str) -> None:
    put(url, a_letter())
    for call in (queue.replay, queue.purge):
        with pytest.raises(ConfigurationError) as caught:
            await call()
        assert caught.value.error_code == "NOTHING_CHOSEN"
        with pytest.raises(MessageBusError) as unknown:
            await call("nobody-knows")
        assert unknown.value.error_code == "DEAD_LETTER_NOT_FOUND"
    assert await queue.count() == 1


async def test_purging_deletes_what_is_chosen_and_nothing_else(queue: DeadLetterQueue, url: str) -> None:
    letters = [a_letter(reason="expired" if number % 2 else "rejected") for number in range(450)]
    put(url, *letters)
    assert await queue.purge(letters[0].letter_id) == 1
    assert await queue.purge(reason="expired") == 225
    left = [letter for letter in letters[1:] if letter.reason == "rejected"]
    assert ids(await queue.list(limit=None)) == ids(left)
    assert await queue.purge(all=True) == len(left)
    assert await queue.count() == 0


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


async def test_what_is_no_letter_is_left_alone_and_counted(
    queue: DeadLetterQueue, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    put_raw(url, {"no": "letter"})
    letter = a_letter()
    put(url, letter)
    put_raw(url, "nor this", headers={"conductor_dead_reason": "boredom"})
    with caplog.at_level(logging.WARNING):
        page = await queue.page()
    assert (page.letters, page.total, page.unreadable) == ([letter], 1, 2)
    assert sum("left there" in record.message for record in caplog.records) == 2
    assert await queue.count() == 3
    report = await queue.replay(all=True)
    assert (report.replayed, report.unreadable) == ([letter.letter_id], 2)
    assert await queue.purge(all=True) == 0
    assert await queue.count() == 2


async def test_on_redis_what_is_no_message_at_all_is_left_alone_too(valkey_url: str) -> None:
    url = f"{valkey_url.rpartition('/')[0]}/5"
    empty(url)
    queue = DeadLetterQueue(ConductorConfig(), url, url)
    with redis.Redis.from_url(url) as client:
        for junk in (b"", b"\xff", b"[]", b"{}", b'{"body": 1, "properties": {}, "headers": 3}', b"", b"7"):
            client.lpush("conductor.dlq", junk)
        letter = a_letter()
        put(url, letter)
        page = await queue.page()
        assert (page.letters, page.unreadable) == ([letter], 7)
        assert await queue.purge(all=True) == 1
        assert client.llen("conductor.dlq") == 7
    empty(url)


async def test_everybody_sees_everything_at_the_same_time(make_queue: QueueMaker, url: str) -> None:
    letters = [a_letter() for _ in range(300)]
    put(url, *letters)
    lists = await asyncio.gather(*(make_queue().list(limit=None) for _ in range(6)))
    counts = await asyncio.gather(*(make_queue().count() for _ in range(6)))
    assert [ids(found) for found in lists] == [ids(letters)] * 6
    assert counts == [300] * 6


async def test_a_list_sees_all_that_stay_while_others_go(make_queue: QueueMaker, url: str) -> None:
    letters = [a_letter(reason="expired" if number % 3 else "rejected") for number in range(900)]
    put(url, *letters)
    stay = [letter.letter_id for letter in letters if letter.reason == "rejected"]
    _, *lists = await asyncio.gather(
        make_queue().purge(reason="expired"), *(make_queue().list(limit=None) for _ in range(4))
    )
    for found in lists:
        assert set(stay) <= set(ids(found))
        assert len(set(ids(found))) == len(found)


async def test_operators_who_replay_at_once_replay_each_letter_once(
    make_queue: QueueMaker, addresses: Addresses
) -> None:
    agent = an_agent()
    template = task_letter(addresses, a_task(), agent)
    letters = []
    for number in range(400):
        task_id = f"{agent}-{number}"
        headers = {**template.headers, "id": task_id}
        letters.append(
            template.model_copy(update={"letter_id": f"l{task_id}", "task_id": task_id, "headers": headers})
        )
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
    """A letter whose queue is the dead letters' own comes back at once, and yet the replay ends."""
    letters = [a_letter(queue="conductor.dlq") for _ in range(3)]
    put(url, *letters)
    async with asyncio.timeout(30):
        report = await queue.replay(all=True)
    assert report.replayed == ids(letters)
    assert await queue.count() == 3


async def test_a_broker_that_is_not_there_is_named_without_its_password(valkey_url: str) -> None:
    for nobody in ("redis://:hidden@127.0.0.1:1/0", "amqp://guest:hidden@127.0.0.1:1//"):
        config = ConductorConfig(bus={"connect_timeout": 0.5})
        queue = DeadLetterQueue(config, nobody, valkey_url)
        for call in (queue.list(), queue.count(), queue.get("x"), queue.replay(all=True)):
            with pytest.raises(MessageBusError) as caught:
                await call
            assert caught.value.error_code == "BROKER_UNAVAILABLE"
            assert "hidden" not in str(caught.value)


async def test_on_rabbitmq_somebody_who_does_not_finish_is_told_of(
    rabbitmq_url: str, valkey_url: str
) -> None:
    empty(rabbitmq_url)
    letter = a_letter()
    put(rabbitmq_url, letter)
    queue = DeadLetterQueue(ConductorConfig(), rabbitmq_url, valkey_url, busy_timeout=0.2)
    with kombu_connection(rabbitmq_url) as somebody:
        somebody.default_channel.queue_declare(topology.DEAD_LETTERS_LOCK, exclusive=True)
        for call in (queue.list(), queue.count(), queue.purge(all=True)):
            with pytest.raises(MessageBusError, match="try again later") as caught:
                await call
            assert caught.value.error_code == "DLQ_BUSY"
    assert await queue.list() == [letter]


async def test_on_redis_letters_survive_a_restart(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        letters = [a_letter() for _ in range(20)]
        put(server.url, *letters)
        server.stop()
        server.start()
        queue = DeadLetterQueue(ConductorConfig(), server.url, server.url)
        assert await queue.list() == letters


async def test_on_rabbitmq_queue_and_letters_are_durable(rabbitmq_url: str, valkey_url: str) -> None:
    empty(rabbitmq_url)
    letters = [a_letter() for _ in range(4)]
    put(rabbitmq_url, *letters)
    await DeadLetterQueue(ConductorConfig(), rabbitmq_url, valkey_url).list()
    rows = rabbitmq.list_objects("queues", rabbitmq_url, "name", "durable", "messages", "messages_persistent")
    assert ["conductor.dlq", "true", "4", "4"] in rows
    assert not [row for row in rows if row[0] == topology.DEAD_LETTERS_LOCK]
