"""Quotas over Redis: leases, Celery's records, and what is left of keys."""

import json
import uuid
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis

from conductor.orchestration.quotas import Claim, Lasts, Quota
from conductor.store.link import Link
from conductor.store.redis_quotas import RedisQuotaStore
from conductor.store.redis_state import RedisStateManager
from tests.support.waiting import wait_until

LEASE = 0.5
SLOT = Quota("slots", 1, Lasts.TASK)
EACH_KIND = [Quota(f"kept-{lasts}", 1, lasts, 60) for lasts in Lasts]


@pytest.fixture
async def link(redis_url: str, prefix: str) -> AsyncIterator[Link]:
    async with RedisStateManager(redis_url, prefix) as state:
        yield state.link


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    await client.aclose()


class Records:
    """Celery's records, as nodes write them."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self.client, self.prefix = client, f"{prefix}celery-"

    async def file(self, claim: Claim, status: str, run: str | None = None) -> None:
        record = {"status": status, "task_id": claim.task_id, "kwargs": {"run": run or claim.run}}
        await self.client.set(self.prefix + claim.task_id, json.dumps(record))


@pytest.fixture
def records(client: redis.Redis, prefix: str) -> Records:
    return Records(client, prefix)


@pytest.fixture
def store(link: Link, prefix: str, records: Records) -> RedisQuotaStore:
    return RedisQuotaStore(link, prefix, records.prefix, lease_seconds=LEASE)


@pytest.fixture
def patient(link: Link, prefix: str, records: Records) -> RedisQuotaStore:
    """One whose leases outlive the test."""
    return RedisQuotaStore(link, prefix, records.prefix)


def claim(amount: float = 1.0) -> Claim:
    return Claim(uuid.uuid4().hex, str(uuid.uuid4()), amount)


async def used(store: RedisQuotaStore, quota: Quota = SLOT) -> float:
    return (await store.look(quota, claim())).used


async def lapse(store: RedisQuotaStore) -> None:
    """Wait until a lease that was begun before is over."""
    marker, quota = claim(), Quota(uuid.uuid4().hex, 1, Lasts.TASK)
    await store.reserve(quota, marker)

    async def over() -> bool:
        return await used(store, quota) == 0

    await wait_until(over)


@pytest.mark.parametrize("quota", EACH_KIND, ids=list(Lasts))
async def test_a_reservation_that_nobody_settles_is_given_back(store: RedisQuotaStore, quota: Quota) -> None:
    assert (await store.reserve(quota, claim())).granted
    assert not (await store.reserve(quota, claim())).granted
    await lapse(store)
    assert (await store.reserve(quota, claim())).granted


@pytest.mark.parametrize("quota", EACH_KIND, ids=list(Lasts))
@pytest.mark.parametrize("status", ["STARTED", "RETRY"])
async def test_a_task_that_was_started_keeps_what_its_dead_dispatcher_reserved(
    store: RedisQuotaStore, records: Records, quota: Quota, status: str
) -> None:
    sent = claim()
    await store.reserve(quota, sent)
    await records.file(sent, status)
    await lapse(store)
    assert not (await store.reserve(quota, claim())).granted


@pytest.mark.parametrize("quota", EACH_KIND, ids=list(Lasts))
async def test_a_task_that_was_filed_counts_again_when_it_turns_out_to_have_been_sent(
    store: RedisQuotaStore, records: Records, quota: Quota
) -> None:
    sent = claim()
    await store.reserve(quota, sent)
    await records.file(sent, "PENDING")
    await lapse(store)
    assert await used(store, quota) == 0
    await records.file(sent, "STARTED")
    assert await used(store, quota) == 1


async def test_a_task_that_was_confirmed_late_counts(store: RedisQuotaStore, records: Records) -> None:
    slow = claim()
    await store.reserve(SLOT, slow)
    await records.file(slow, "PENDING")
    await lapse(store)
    assert await used(store) == 0
    await store.confirm(SLOT, slow)
    assert await used(store) == 1


@pytest.mark.parametrize("status", ["PENDING", "STARTED", "RETRY", "SOMETHING-NEW"])
async def test_what_is_confirmed_is_held_while_the_task_goes_on(
    store: RedisQuotaStore, records: Records, status: str
) -> None:
    goes_on = claim()
    await store.reserve(SLOT, goes_on)
    await records.file(goes_on, status)
    await store.confirm(SLOT, goes_on)
    await lapse(store)
    assert not (await store.reserve(SLOT, claim())).granted


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED", "", "{", "[]"])
async def test_what_is_confirmed_ends_with_the_task(
    patient: RedisQuotaStore, records: Records, status: str
) -> None:
    ends = claim()
    await patient.reserve(SLOT, ends)
    await records.file(ends, "STARTED")
    await patient.confirm(SLOT, ends)
    assert not (await patient.reserve(SLOT, claim())).granted
    if status.isalpha():
        await records.file(ends, status)
    elif status:
        await records.client.set(records.prefix + ends.task_id, status)
    else:
        await records.client.delete(records.prefix + ends.task_id)
    assert (await patient.reserve(SLOT, claim())).granted


async def test_a_task_that_ended_before_it_was_confirmed_is_over(
    patient: RedisQuotaStore, records: Records
) -> None:
    quick = claim()
    await patient.reserve(SLOT, quick)
    assert not (await patient.reserve(SLOT, claim())).granted
    await records.file(quick, "PENDING")
    assert not (await patient.reserve(SLOT, claim())).granted
    await records.file(quick, "SUCCESS")
    assert (await patient.reserve(SLOT, claim())).granted
    await patient.confirm(SLOT, quick)
    assert await used(patient) == 1


async def test_a_later_run_of_the_same_task_does_not_hold_for_the_earlier_one(
    patient: RedisQuotaStore, records: Records
) -> None:
    earlier = claim()
    await patient.reserve(SLOT, earlier)
    await patient.confirm(SLOT, earlier)
    await records.file(earlier, "STARTED", run="another")
    assert (await patient.reserve(SLOT, claim())).granted


async def test_a_result_too_deep_to_be_read_is_an_end(patient: RedisQuotaStore, records: Records) -> None:
    ends = claim()
    await patient.reserve(SLOT, ends)
    await patient.confirm(SLOT, ends)
    deep = '{"status": "SUCCESS", "result": ' + "[" * 2000 + "]" * 2000 + "}"
    await records.client.set(records.prefix + ends.task_id, deep)
    assert (await patient.reserve(SLOT, claim())).granted


async def test_no_key_is_left_when_all_is_given_back(
    patient: RedisQuotaStore, client: redis.Redis, prefix: str
) -> None:
    for quota in EACH_KIND:
        one = claim()
        await patient.reserve(quota, one)
        assert await client.keys(f"{prefix}quota:*")
        await patient.release(quota, one)
    assert await client.keys(f"{prefix}quota:*") == []


async def test_a_period_leaves_with_its_end(
    patient: RedisQuotaStore, client: redis.Redis, prefix: str
) -> None:
    quota, one = Quota("period", 1, Lasts.PERIOD, 60), claim()
    await patient.reserve(quota, one)
    await patient.confirm(quota, one)
    assert 60 <= await client.ttl(f"{prefix}quota:period:held") <= 61


async def test_a_sum_is_kept_as_long_as_it_is_said(link: Link, client: redis.Redis, prefix: str) -> None:
    for expires, seconds in ((None, -1), (5.0, 30), (600.0, 600)):
        store = RedisQuotaStore(link, prefix, f"{prefix}celery-", expires_seconds=expires)
        quota, one = Quota(f"sum-{seconds}", 1, Lasts.EVER), claim()
        await store.reserve(quota, one)
        await store.confirm(quota, one)
        assert await client.ttl(f"{prefix}quota:sum-{seconds}:held") == seconds
