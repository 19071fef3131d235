"""What the Redis state manager stores: readable hashes, and indexes that agree with them whatever happens."""

import asyncio
import json
import logging
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.exceptions import ConfigurationError, StateError
from conductor.orchestration.state_kinds import KINDS
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager
from tests.store.makers import START, agent, result, workflow
from tests.support.waiting import wait_until

Raw = Any


@pytest.fixture
def raw(redis_url: str) -> Raw:
    """A client of redis-py, to look behind the manager's back."""
    return redis.Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
async def state(redis_url: str, prefix: str) -> AsyncIterator[RedisStateManager]:
    async with RedisStateManager(redis_url, prefix) as manager:
        yield manager


def check_indexes(raw: Raw, prefix: str) -> int:
    """Assert that the indexes say what the entities say; return how many entities there are."""
    count = 0
    for kind in KINDS:
        start = f"{prefix}{kind.name}:"
        entities = {
            key.removeprefix(start): raw.hgetall(key) for key in raw.scan_iter(f"{start}*", count=1000)
        }
        index = f"{prefix}index:{kind.name}"
        assert set(raw.zrange(index, 0, -1)) == set(entities)
        for name, values in kind.filters.items():
            for value in values:
                expected = {key for key, fields in entities.items() if fields[name] == f'"{value}"'}
                assert set(raw.zrange(f"{index}:{name}:{value}", 0, -1)) == expected, (kind.name, name, value)
        count += len(entities)
    return count


async def test_a_person_can_read_the_hashes(state: RedisStateManager, raw: Raw, prefix: str) -> None:
    version = await state.save_agent_state(agent("a", metadata={"host": "h"}, updated_at=START))
    assert raw.hgetall(f"{prefix}agent:a") == {
        "agent_id": '"a"',
        "agent_type": '"coding"',
        "status": '"idle"',
        "current_task_id": "null",
        "completed_tasks": "[]",
        "failed_tasks": "[]",
        "error_count": "0",
        "last_heartbeat": "null",
        "metadata": '{"host":"h"}',
        "created_at": '"2026-01-01T00:00:00+00:00"',
        "updated_at": '"2026-01-01T00:00:00+00:00"',
        "_version": str(version),
    }
    await state.save_workflow_state(workflow("w", task_results={"t:1": result("t:1")}))
    fields = raw.hgetall(f"{prefix}workflow:w")
    assert json.loads(fields["task_results:t:1"])["status"] == "completed"
    assert json.loads(fields["phase_history"]) == []
    assert "task_results" not in fields


async def test_random_concurrent_work_leaves_indexes_that_agree(
    redis_url: str, prefix: str, raw: Raw
) -> None:
    async with RedisStateManager(redis_url, prefix) as one, RedisStateManager(redis_url, prefix) as two:
        dice = random.Random(5)

        async def work() -> None:
            for _ in range(40):
                manager, name = dice.choice([one, two]), str(dice.randrange(12))
                step = dice.randrange(7)
                if step == 0:
                    await manager.delete_agent_state(name)
                elif step == 1:
                    await manager.save_task_result(result(name, status=dice.choice(list(TaskStatus))))
                elif step == 2:
                    await manager.save_workflow_state(workflow(name, status=dice.choice(list(TaskStatus))))
                elif step == 3:
                    await manager.delete_task_result(name)
                elif step == 4 and await manager.get_agent_state(name):
                    await asyncio.gather(
                        manager.update_agent_state(name, status=dice.choice(list(AgentStatus))),
                        return_exceptions=True,
                    )
                else:
                    kind, status = dice.choice(list(AgentType)), dice.choice(list(AgentStatus))
                    await manager.save_agent_state(agent(name, agent_type=kind, status=status))

        await asyncio.gather(*(work() for _ in range(20)))
    assert check_indexes(raw, prefix) > 0


async def test_a_server_killed_in_the_middle_leaves_indexes_that_agree(tmp_path: Path, prefix: str) -> None:
    server = EmbeddedServer(tmp_path)
    with server:
        async with RedisStateManager(server.url, prefix, retry_seconds=0) as state:
            saved = 0

            async def save() -> None:
                nonlocal saved
                while True:
                    await state.save_agent_state(agent(str(saved), status=random.choice(list(AgentStatus))))
                    saved += 1

            saving = [asyncio.create_task(save()) for _ in range(20)]
            await wait_until(lambda: saved > 500)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*saving, return_exceptions=True)
            assert {outcome.error_code for outcome in outcomes if isinstance(outcome, StateError)} == {
                "STATE_UNAVAILABLE"
            }
        await wait_until(lambda: not server.is_running)
        server.start()
        assert check_indexes(redis.Redis.from_url(server.url, decode_responses=True), prefix) > 0


DAMAGES: dict[str, tuple[str, Any]] = {
    "missing field": ("completed_tasks", None),
    "no JSON": ("metadata", "{oops"),
    "two values": ("metadata", "{} {}"),
    "unknown enum": ("status", '"asleep"'),
    "wrong type": ("error_count", '"many"'),
    "no text": ("current_task_id", b'"\xff"'),
    "no version": ("_version", None),
    "bad version": ("_version", "x"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_named_and_left_out_of_lists(
    state: RedisStateManager, raw: Raw, prefix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("before", "hurt", "after"):
        await state.save_agent_state(agent(name))
    field, value = DAMAGES[damage]
    key = f"{prefix}agent:hurt"
    raw.hdel(key, field) if value is None else raw.hset(key, field, value)
    with pytest.raises(StateError) as caught:
        await state.get_agent_state("hurt")
    assert caught.value.error_code == "STATE_CORRUPT"
    assert (caught.value.details["key"], caught.value.details["field"]) == (key, field)
    assert key in caught.value.message
    assert field in caught.value.message
    with caplog.at_level(logging.WARNING):
        assert {found.agent_id for found in await state.list_agent_states()} == {"before", "after"}
    assert state.corrupt_count == 1
    assert key in caplog.text
    assert field in caplog.text
    await state.save_agent_state(agent("hurt"))
    assert len(await state.list_agent_states()) == 3


async def test_damage_of_another_type_is_named(state: RedisStateManager, raw: Raw, prefix: str) -> None:
    await state.save_task_results([result("a"), result("hurt")])
    raw.delete(f"{prefix}task_result:hurt")
    raw.set(f"{prefix}task_result:hurt", "text")
    for operation in (state.get_task_result("hurt"), state.save_task_result(result("hurt"))):
        with pytest.raises(StateError, match=f"{prefix}task_result:hurt") as caught:
            await operation
        assert caught.value.error_code == "STATE_CORRUPT"
    assert [found.task_id for found in await state.list_task_results()] == ["a"]
    assert await state.delete_task_result("hurt")
    assert await state.save_task_result(result("hurt"))


async def test_damage_in_a_part_of_a_workflow_is_named(
    state: RedisStateManager, raw: Raw, prefix: str
) -> None:
    await state.save_workflow_state(workflow("w", task_results={"t": result("t")}))
    raw.hset(f"{prefix}workflow:w", "task_results:t", '{"task_id": "t"}')
    with pytest.raises(StateError, match="task_results:t") as caught:
        await state.get_workflow_state("w")
    assert caught.value.error_code == "STATE_CORRUPT"


async def test_a_damaged_count_is_named_by_the_increment(
    state: RedisStateManager, raw: Raw, prefix: str
) -> None:
    await state.save_agent_state(agent("a"))
    raw.hset(f"{prefix}agent:a", "error_count", '"many"')
    with pytest.raises(StateError, match="error_count") as caught:
        await state.update_agent_state("a", increment={"error_count": 1})
    assert caught.value.error_code == "STATE_CORRUPT"


async def test_fields_of_a_newer_version_are_kept_and_not_in_the_way(
    state: RedisStateManager, raw: Raw, prefix: str
) -> None:
    await state.save_agent_state(agent("a"))
    raw.hset(f"{prefix}agent:a", "future", "?")
    assert await state.get_agent_state("a") is not None
    await state.save_agent_state(agent("a"))
    assert raw.hget(f"{prefix}agent:a", "future") == "?"


async def test_what_expires_leaves_lists_and_indexes(redis_url: str, prefix: str, raw: Raw) -> None:
    expires = {"agent": 0.05}
    async with (
        RedisStateManager(redis_url, prefix, expires_seconds=expires) as fleeting,
        RedisStateManager(redis_url, prefix) as lasting,
        lasting.watch_agent_states() as changes,
    ):
        for number in range(30):
            await fleeting.save_agent_state(agent(f"gone-{number}", number))
        await fleeting.save_task_result(result("kept"))
        await lasting.save_agent_state(agent("kept", 99))
        await wait_until(lambda: not raw.exists(*(f"{prefix}agent:gone-{number}" for number in range(30))))
        assert [found.agent_id for found in await lasting.list_agent_states(limit=1)] == ["kept"]
        assert await lasting.list_agent_states(status="idle", agent_type="coding", limit=5) == [
            agent_of("kept")
        ]
        check_indexes(raw, prefix)
        seen = [await asyncio.wait_for(anext(changes), 10) for _ in range(61)]
        assert sum(change.state is None for change in seen) == 30
        assert await fleeting.get_task_result("kept")


def agent_of(agent_id: str) -> Any:
    class Matching:
        def __eq__(self, other: object) -> bool:
            return bool(getattr(other, "agent_id", None) == agent_id)

        __hash__ = None  # type: ignore[assignment]

    return Matching()


async def test_what_expired_and_comes_back_is_in_no_old_index(redis_url: str, prefix: str, raw: Raw) -> None:
    async with RedisStateManager(redis_url, prefix, expires_seconds={"agent": 0.02}) as state:
        await state.save_agent_state(agent("a", status=AgentStatus.RUNNING))
        await wait_until(lambda: not raw.exists(f"{prefix}agent:a"))
    async with RedisStateManager(redis_url, prefix) as state:
        await state.save_agent_state(agent("a", agent_type=AgentType.TEST))
        check_indexes(raw, prefix)
        assert await state.list_agent_states(status="running") == []


async def test_indexes_do_not_grow_with_what_nobody_lists(redis_url: str, prefix: str, raw: Raw) -> None:
    async with RedisStateManager(redis_url, prefix, expires_seconds={"task_result": 0.02}) as state:
        await state.save_task_results([result(str(number)) for number in range(50)])
        await wait_until(lambda: not list(raw.scan_iter(f"{prefix}task_result:*", count=10_000)))

        async def swept() -> bool:
            await state.save_task_result(result("next"))
            return bool(raw.zcard(f"{prefix}index:task_result") <= 2)

        await wait_until(swept)  # type: ignore[arg-type]
        assert raw.zcard(f"{prefix}expiring:task_result") <= 2


async def test_a_write_starts_the_time_to_live_again_and_a_manager_without_one_ends_it(
    redis_url: str, prefix: str, raw: Raw
) -> None:
    key = f"{prefix}agent:a"
    async with RedisStateManager(redis_url, prefix, expires_seconds={"agent": 1000}) as state:
        await state.save_agent_state(agent("a"))
        raw.pexpire(key, 50_000)
        await state.update_agent_state("a", status="running")
        assert raw.pttl(key) > 900_000
    async with RedisStateManager(redis_url, prefix) as state:
        await state.save_agent_state(agent("a"))
        assert raw.pttl(key) == -1
        assert raw.zcard(f"{prefix}expiring:agent") == 0


@pytest.mark.parametrize("expires", [{"agents": 1}, {"agent": 0}, {"agent": -1}, {"agent": float("nan")}])
def test_an_impossible_expiry_is_refused(expires: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"expires_seconds: .*agent"):
        RedisStateManager("redis://localhost", expires_seconds=expires)


async def test_what_somebody_deleted_by_hand_is_no_obstacle(
    state: RedisStateManager, raw: Raw, prefix: str
) -> None:
    for number in range(5):
        await state.save_agent_state(agent(str(number), number))
    raw.delete(f"{prefix}agent:0", f"{prefix}agent:2")
    assert [found.agent_id for found in await state.list_agent_states(limit=2)] == ["1", "3"]
    await state.list_agent_states()
    check_indexes(raw, prefix)


@pytest.mark.parametrize("method", ["part", "whole"])
async def test_one_more_result_of_ten_thousand_costs_what_it_cost_with_ten(
    tmp_path: Path, prefix: str, method: str
) -> None:
    with EmbeddedServer(tmp_path) as server:
        raw = redis.Redis.from_url(server.url, decode_responses=True)
        async with RedisStateManager(server.url, prefix) as state:

            async def bytes_for_one_more(count: int) -> int:
                run = workflow(
                    "w", task_results={str(number): result(str(number)) for number in range(count)}
                )
                await state.save_workflow_state(run)
                before = raw.info("stats")["total_net_input_bytes"]
                one = result("one more")
                if method == "part":
                    await state.save_workflow_task_result("w", one)
                else:
                    run.task_results["one more"] = one
                    await state.save_workflow_state(run)
                return int(raw.info("stats")["total_net_input_bytes"] - before)

            ten, ten_thousand = await bytes_for_one_more(10), await bytes_for_one_more(10_000)
            assert abs(ten_thousand - ten) < 100


async def test_databases_and_prefixes_keep_apart(redis_url: str, prefix: str) -> None:
    other_db = redis_url.rsplit("/", 1)[0] + "/1"
    async with (
        RedisStateManager(redis_url, prefix) as one,
        RedisStateManager(other_db, prefix) as two,
        RedisStateManager(redis_url, prefix + "x:") as three,
        two.watch_agent_states() as changes,
    ):
        await one.save_agent_state(agent("a"))
        await two.save_agent_state(agent("b"))
        assert (await asyncio.wait_for(anext(changes), 10)).agent_id == "b"
        assert await three.list_agent_states() == []
        assert [found.agent_id for found in await one.list_agent_states()] == ["a"]


async def test_a_thousand_concurrent_calls_use_one_connection(
    state: RedisStateManager, raw: Raw, prefix: str
) -> None:
    before = raw.info("stats")["total_connections_received"]
    await asyncio.gather(*(state.save_agent_state(agent(str(number))) for number in range(1000)))
    found = await asyncio.gather(*(state.get_agent_state(str(number)) for number in range(1000)))
    assert [one.agent_id for one in found if one] == [str(number) for number in range(1000)]
    assert raw.info("stats")["total_connections_received"] == before


async def test_a_cancelled_call_disturbs_no_other(state: RedisStateManager) -> None:
    await state.save_task_results([result(str(number)) for number in range(50)])
    calls = [asyncio.create_task(state.get_task_result(str(number))) for number in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    found = [
        outcome.task_id for outcome in outcomes[1::2] if outcome and not isinstance(outcome, BaseException)
    ]
    assert found == [str(number) for number in range(1, 50, 2)]


async def test_flushed_scripts_are_loaded_again(state: RedisStateManager, raw: Raw) -> None:
    raw.script_flush()
    await asyncio.gather(*(state.save_agent_state(agent(str(number))) for number in range(10)))
    assert len(await state.list_agent_states()) == 10
