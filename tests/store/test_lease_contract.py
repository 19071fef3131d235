"""A lease has one owner at a time, whichever the store."""

import asyncio

import pytest

from conductor.core.exceptions import StateError
from conductor.orchestration.state_manager import InMemoryStateManager, StateManager
from conductor.store.redis_state import RedisStateManager
from tests.store.conftest import Pair
from tests.support.waiting import wait_until


async def test_of_many_who_want_a_lease_one_gets_it(pair: Pair) -> None:
    managers = [pair.one, pair.two] * 25
    wishes = [m.acquire_lease("run", f"owner-{n}", 60) for n, m in enumerate(managers)]
    got = await asyncio.gather(*wishes)
    assert got.count(True) == 1
    assert await pair.two.lease_owner("run") == f"owner-{got.index(True)}"


async def test_leases_of_other_names_are_others(pair: Pair) -> None:
    assert await pair.one.acquire_lease("a:b", "one", 60)
    assert await pair.two.acquire_lease("a", "two", 60)
    assert await pair.one.lease_owner("a:b") == "one"
    assert await pair.one.lease_owner("b") is None


async def test_an_owner_may_acquire_again_and_renew_and_no_other_may(pair: Pair) -> None:
    assert not await pair.one.renew_lease("run", "one", 60)
    assert await pair.one.acquire_lease("run", "one", 60)
    assert await pair.two.acquire_lease("run", "one", 60)
    assert await pair.two.renew_lease("run", "one", 60)
    assert not await pair.two.renew_lease("run", "two", 60)
    assert not await pair.two.acquire_lease("run", "two", 60)
    assert await pair.one.lease_owner("run") == "one"


async def test_only_its_owner_gives_a_lease_back_and_then_it_is_free(pair: Pair) -> None:
    await pair.one.acquire_lease("run", "one", 60)
    assert not await pair.two.release_lease("run", "two")
    assert await pair.two.release_lease("run", "one")
    assert not await pair.two.release_lease("run", "one")
    assert await pair.one.lease_owner("run") is None
    assert await pair.two.acquire_lease("run", "two", 60)


async def test_a_lease_that_is_not_renewed_runs_out(pair: Pair) -> None:
    await pair.one.acquire_lease("run", "one", 0.1)
    await wait_until(lambda: pair.two.acquire_lease("run", "two", 60))
    assert not await pair.one.renew_lease("run", "one", 60)
    assert not await pair.one.release_lease("run", "one")
    assert await pair.one.lease_owner("run") == "two"


async def test_renewing_prolongs_a_lease(pair: Pair) -> None:
    await pair.one.acquire_lease("short", "one", 0.5)
    await pair.one.acquire_lease("long", "one", 0.5)
    await pair.one.renew_lease("long", "one", 60)
    await wait_until(lambda: pair.two.acquire_lease("short", "two", 60))
    assert not await pair.two.acquire_lease("long", "two", 60)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
async def test_a_lease_that_cannot_be_is_refused(manager: StateManager, seconds: float) -> None:
    for lend in (manager.acquire_lease, manager.renew_lease):
        with pytest.raises(StateError) as caught:
            await lend("run", "one", seconds)
        assert caught.value.error_code == "STATE_INVALID"


async def test_without_a_connection_there_are_no_leases(redis_url: str) -> None:
    for manager in (InMemoryStateManager(), RedisStateManager(redis_url)):
        for use in (
            manager.acquire_lease("run", "one", 1),
            manager.renew_lease("run", "one", 1),
            manager.release_lease("run", "one"),
            manager.lease_owner("run"),
        ):
            with pytest.raises(StateError) as caught:
                await use
            assert caught.value.error_code == "STATE_NOT_CONNECTED"
