"""What every store of quotas does."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from conductor.orchestration.quotas import Answer, Claim, InMemoryQuotaStore, Lasts, Quota, QuotaStore
from conductor.store.redis_quotas import RedisQuotaStore
from conductor.store.redis_state import RedisStateManager
from tests.support.waiting import wait_until


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[QuotaStore]:
    if request.param == "memory":
        yield InMemoryQuotaStore()
        return
    async with RedisStateManager(request.getfixturevalue("redis_url"), prefix) as state:
        # Claims of tasks that Celery knows nothing of have ended, once they are confirmed.
        yield RedisQuotaStore(state.link, prefix, f"{prefix}record:")


def claim(amount: float = 1.0, task_id: str = "a task") -> Claim:
    return Claim(uuid.uuid4().hex, task_id, amount)


def quota(limit: float, lasts: Lasts = Lasts.TASK, period_seconds: float = 0.0) -> Quota:
    return Quota("some:quota", limit, lasts, period_seconds)


def each_kind(limit: float) -> list[Quota]:
    return [quota(limit, lasts, 60) for lasts in Lasts]


@pytest.mark.parametrize("wanted", each_kind(2), ids=list(Lasts))
async def test_as_much_as_the_limit_is_granted_and_no_more(store: QuotaStore, wanted: Quota) -> None:
    answers = [await store.reserve(wanted, claim()) for _ in range(3)]
    assert [answer.granted for answer in answers] == [True, True, False]
    assert [answer.used for answer in answers] == [0, 1, 2]


@pytest.mark.parametrize("wanted", each_kind(5), ids=list(Lasts))
async def test_many_at_once_get_exactly_the_limit(store: QuotaStore, wanted: Quota) -> None:
    answers = await asyncio.gather(*(store.reserve(wanted, claim()) for _ in range(100)))
    assert sum(answer.granted for answer in answers) == 5


async def test_looking_takes_nothing(store: QuotaStore) -> None:
    wanted = quota(1)
    assert [(await store.look(wanted, claim())).granted for _ in range(2)] == [True, True]
    await store.reserve(wanted, claim())
    assert await store.look(wanted, claim()) == Answer(granted=False, used=1)


@pytest.mark.parametrize("wanted", each_kind(1), ids=list(Lasts))
async def test_what_is_released_before_it_was_confirmed_is_there_again(
    store: QuotaStore, wanted: Quota
) -> None:
    first = claim()
    assert (await store.reserve(wanted, first)).granted
    await store.release(wanted, first)
    assert (await store.reserve(wanted, claim())).granted


@pytest.mark.parametrize("wanted", each_kind(1), ids=list(Lasts))
async def test_a_claim_made_twice_counts_once(store: QuotaStore, wanted: Quota) -> None:
    only = claim()
    answers = [await store.reserve(wanted, only) for _ in range(2)]
    assert answers == [Answer(granted=True, used=0)] * 2
    assert (await store.look(wanted, claim())).used == 1


async def test_two_dispatches_of_one_task_are_two_claims(store: QuotaStore) -> None:
    wanted, first, second = quota(2), claim(), claim()
    await store.reserve(wanted, first)
    await store.reserve(wanted, second)
    await store.release(wanted, second)
    assert (await store.look(wanted, claim())).used == 1


async def test_what_is_held_for_a_task_is_given_back_by_its_end(store: QuotaStore) -> None:
    wanted, first = quota(1), claim()
    await store.reserve(wanted, first)
    await store.confirm(wanted, first)
    await store.release(wanted, first)
    assert (await store.look(wanted, claim())).used == 0


async def test_what_is_held_for_a_period_is_kept_until_it_is_over(store: QuotaStore) -> None:
    wanted, first = quota(1, Lasts.PERIOD, 0.5), claim()
    await store.reserve(wanted, first)
    await store.confirm(wanted, first)
    await store.release(wanted, first)
    denied = await store.reserve(wanted, claim())
    assert not denied.granted
    assert denied.retry_after is not None
    assert 0 < denied.retry_after <= 0.5

    async def granted() -> bool:
        return (await store.reserve(wanted, claim())).granted

    await wait_until(granted)


async def test_the_next_chance_of_a_period_is_when_the_first_of_it_ends(store: QuotaStore) -> None:
    wanted, lowered = quota(2, Lasts.PERIOD, 60), quota(1, Lasts.PERIOD, 60)

    async def take() -> None:
        one = claim()
        await store.reserve(wanted, one)
        await store.confirm(wanted, one)

    async def left(of: Quota) -> float:
        return (await store.look(of, claim())).retry_after or 0.0

    async def some_time_went_by() -> bool:
        return await left(lowered) < 59.9

    await take()
    await wait_until(some_time_went_by)
    await take()
    assert 0 < await left(wanted) < 59.9 < await left(lowered) <= 60
    assert (await store.look(replace(wanted, limit=0), claim())).retry_after is None


async def test_when_something_is_only_reserved_the_next_chance_is_not_known(store: QuotaStore) -> None:
    wanted, first, second = quota(2, Lasts.PERIOD, 60), claim(), claim()
    for one in (first, second):
        await store.reserve(wanted, one)
    await store.confirm(wanted, first)
    assert await store.look(wanted, claim()) == Answer(granted=False, used=2)


async def test_no_period_has_more_than_the_limit_whenever_it_begins(store: QuotaStore) -> None:
    wanted, sent = quota(3, Lasts.PERIOD, 0.2), list[float]()

    async def dispatching() -> None:
        while len(sent) < 15:
            one = claim()
            if (await store.reserve(wanted, one)).granted:
                await asyncio.sleep(0)
                sent.append(time.monotonic())
                await store.confirm(wanted, one)
            else:
                await asyncio.sleep(0.003)

    await asyncio.gather(*(dispatching() for _ in range(4)))
    # A millisecond, as the server's clock is another one.
    assert min(later - earlier for earlier, later in zip(sent, sent[3:], strict=False)) > 0.199


async def test_another_length_of_the_period_counts_from_the_same_times(store: QuotaStore) -> None:
    long, short = (quota(1, Lasts.PERIOD, seconds) for seconds in (60, 0.05))
    sent = claim()
    await store.reserve(long, sent)
    await store.confirm(long, sent)
    assert not (await store.look(long, claim())).granted
    await wait_until(lambda: _is_granted(store, short))


async def _is_granted(store: QuotaStore, wanted: Quota) -> bool:
    return (await store.look(wanted, claim())).granted


async def test_sums_last(store: QuotaStore) -> None:
    wanted = quota(10, Lasts.EVER)
    for amount in (2.5, 3.5):
        one = claim(amount)
        await store.reserve(wanted, one)
        for _ in range(2):
            await store.confirm(wanted, one)
        await store.release(wanted, one)
    assert await store.look(wanted, claim(4)) == Answer(granted=True, used=6)
    assert await store.look(wanted, claim(4.01)) == Answer(granted=False, used=6, final=True)


async def test_three_tenths_fit_in_three_tenths(store: QuotaStore) -> None:
    wanted = quota(0.3, Lasts.EVER)
    for _ in range(3):
        one = claim(0.1)
        assert (await store.reserve(wanted, one)).granted
        await store.confirm(wanted, one)
    assert not (await store.reserve(wanted, claim(0.0001))).granted


async def test_what_was_never_reserved_is_not_held(store: QuotaStore) -> None:
    for wanted in each_kind(1):
        await store.confirm(wanted, claim())
        await store.release(wanted, claim())
        assert (await store.look(wanted, claim())).used == 0


async def test_nothing_is_granted_of_nothing(store: QuotaStore) -> None:
    for wanted in each_kind(0):
        assert not (await store.reserve(wanted, claim())).granted


async def test_quotas_do_not_mix(store: QuotaStore) -> None:
    await store.reserve(quota(1), claim())
    assert (await store.reserve(replace(quota(1), key="other"), claim())).granted


async def test_task_ids_may_be_anything(store: QuotaStore) -> None:
    wanted = quota(1, Lasts.PERIOD, 60)
    odd = claim(task_id="a b\n c: ü %s")
    assert (await store.reserve(wanted, odd)).granted
    await store.confirm(wanted, odd)
    assert (await store.look(wanted, claim())).used == 1
