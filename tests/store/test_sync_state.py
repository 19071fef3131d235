"""What code without an event loop can write."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from conductor.core.exceptions import StateError
from conductor.store.redis_state import RedisStateManager
from conductor.store.sync_state import SyncState
from tests.store.makers import agent, result
from tests.store.test_redis_state import check_indexes


async def test_it_writes_what_the_state_manager_reads(redis_url: str, prefix: str) -> None:
    sync = SyncState(redis_url, prefix)
    async with RedisStateManager(redis_url, prefix) as state:
        before = agent("a", error_count=1)
        await state.save_agent_state(before)
        assert sync.touch_heartbeat("a") is True
        after = await state.get_agent_state("a")
        assert after is not None
        assert after.last_heartbeat is not None
        assert after.updated_at > before.updated_at
        assert sync.update_agent_state("a", increment={"error_count": 2}, status="failed") is True
        assert [found.error_count for found in await state.list_agent_states(status="failed")] == [3]
        assert sync.save_task_result(result("t")) > 0
        assert await state.get_task_result("t") == result("t")
        assert sync.delete_agent_state("a") is True
        assert sync.delete_agent_state("a") is False
    check_indexes(redis.Redis.from_url(redis_url, decode_responses=True), prefix)
    sync.close()


def test_a_missing_agent_is_not_made(redis_url: str, prefix: str) -> None:
    sync = SyncState(redis_url, prefix)
    assert sync.touch_heartbeat("nobody") is False
    assert not list(redis.Redis.from_url(redis_url).scan_iter(f"{prefix}*", count=10_000))


def test_bad_input_is_refused_by_field(redis_url: str, prefix: str) -> None:
    with pytest.raises(StateError, match="colour") as caught:
        SyncState(redis_url, prefix).update_agent_state("a", colour="red")
    assert caught.value.error_code == "STATE_INVALID"


def test_flushed_scripts_are_loaded_again(redis_url: str, prefix: str) -> None:
    sync = SyncState(redis_url, prefix)
    redis.Redis.from_url(redis_url).script_flush()
    assert sync.save_task_result(result("t")) > 0


def _touch(sync: SyncState) -> None:
    assert not sync.touch_heartbeat("nobody")


def test_threads_and_forked_children_may_share_it(redis_url: str, prefix: str) -> None:
    sync = SyncState(redis_url, prefix)
    _touch(sync)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: _touch(sync), range(100)))
    children = [multiprocessing.get_context("fork").Process(target=_touch, args=(sync,)) for _ in range(4)]
    for child in children:
        child.start()
    _touch(sync)
    for child in children:
        child.join(20)
        assert child.exitcode == 0


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StateError, match="Is it running") as caught:
        SyncState("redis://127.0.0.1:1/0", timeout=0.5).touch_heartbeat("a")
    assert caught.value.error_code == "STATE_UNAVAILABLE"
