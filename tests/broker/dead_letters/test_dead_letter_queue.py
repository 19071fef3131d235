"""The queue of dead letters, the same on every broker."""

import asyncio
import logging
from pathlib import Path

import pytest
import redis

from conductor.broker import topology
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.transport import kombu_connection
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.exceptions import ConfigurationError, MessageBusError
from conductor.store.embedded import EmbeddedServer
from tests.broker.dead_letters.conftest import QueueMaker
from tests.support import rabbitmq
from tests.support.letters import a_letter, empty, ids, put, put_raw
from tests.support.proxy import Proxy


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
    put(url, one, two, two)
    assert await queue.get("abcdefgh-2") == two
    assert await queue.get("abcdefgh-1") == one
    with pytest.raises(MessageBusError, match="2 dead letters begin with 'abcdefgh': give more") as caught:
        await queue.get("abcdefgh")
    assert caught.value.error_code == "DEAD_LETTER_AMBIGUOUS"
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


async def test_a_broker_that_is_not_there_is_named_without_its_password(valkey_url: str) -> None:
    for nobody in ("redis://:hidden@127.0.0.1:1/0", "amqp://guest:hidden@127.0.0.1:1//"):
        config = ConductorConfig(bus={"connect_timeout": 0.5})
        queue = DeadLetterQueue(config, nobody, valkey_url)
        for call in (queue.list(), queue.count(), queue.get("x"), queue.replay(all=True)):
            with pytest.raises(MessageBusError) as caught:
                await call
            assert caught.value.error_code == "BROKER_UNAVAILABLE"
            assert "hidden" not in str(caught.value)


async def test_a_broker_that_falls_silent_holds_nobody_up(url: str) -> None:
    put(url, a_letter())
    async with Proxy(url) as proxy, asyncio.timeout(60):
        config = ConductorConfig(bus={"connect_timeout": 0.5})
        queue = DeadLetterQueue(config, proxy.url, None)
        assert await queue.count() == 1
        proxy.fall_silent()
        with pytest.raises(MessageBusError) as caught:
            await queue.list()
        assert caught.value.error_code == "BROKER_UNAVAILABLE"


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


async def test_on_rabbitmq_letters_survive_a_restart(tmp_path: Path) -> None:
    if reason := rabbitmq.server_absence():
        pytest.skip(reason)
    letters = [a_letter() for _ in range(20)]
    with rabbitmq.server(tmp_path) as url:
        put(url, *letters)
    with rabbitmq.server(tmp_path) as url:
        assert await DeadLetterQueue(ConductorConfig(), url, None).list() == letters


async def test_on_rabbitmq_queue_and_letters_are_durable(rabbitmq_url: str, valkey_url: str) -> None:
    empty(rabbitmq_url)
    letters = [a_letter() for _ in range(4)]
    put(rabbitmq_url, *letters)
    await DeadLetterQueue(ConductorConfig(), rabbitmq_url, valkey_url).list()
    rows = rabbitmq.list_objects("queues", rabbitmq_url, "name", "durable", "messages", "messages_persistent")
    assert ["conductor.dlq", "true", "4", "4"] in rows
    assert not [row for row in rows if row[0] == topology.DEAD_LETTERS_LOCK]
