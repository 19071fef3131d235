"""The events of workflows are kept, whichever the store."""

import asyncio

import pytest

from conductor.core.exceptions import StateError
from conductor.orchestration.state_manager import InMemoryStateManager, StateManager
from conductor.store.redis_state import RedisStateManager
from tests.store.conftest import Pair
from tests.store.makers import workflow
from tests.support.waiting import wait_until


async def numbers(manager: StateManager, workflow_id: str, after: str = "") -> list[int]:
    return [found.event["n"] for found in await manager.workflow_events(workflow_id, after)]


async def test_events_come_in_the_order_in_which_they_were_appended(pair: Pair) -> None:
    for n in range(5):
        await pair.one.append_workflow_event("w", {"n": n, "text": "ü 🎉"})
    assert await numbers(pair.two, "w") == [0, 1, 2, 3, 4]
    assert (await pair.two.workflow_events("w"))[0].event == {"n": 0, "text": "ü 🎉"}
    assert await pair.two.workflow_events("other") == []


async def test_reading_goes_on_behind_a_position(pair: Pair) -> None:
    for n in range(4):
        await pair.one.append_workflow_event("w", {"n": n})
    first, second = await pair.two.workflow_events("w", limit=2)
    assert (first.event["n"], second.event["n"]) == (0, 1)
    assert await numbers(pair.two, "w", second.position) == [2, 3]
    [*_, last] = await pair.two.workflow_events("w")
    assert await numbers(pair.two, "w", last.position) == []
    await pair.one.append_workflow_event("w", {"n": 4})
    assert await numbers(pair.two, "w", last.position) == [4]


async def test_of_many_writers_nothing_is_lost(pair: Pair) -> None:
    writes = [(pair.one, pair.two)[n % 2].append_workflow_event("w", {"n": n}) for n in range(100)]
    await asyncio.gather(*writes)
    assert sorted(await numbers(pair.one, "w")) == list(range(100))


async def test_the_log_goes_with_its_workflow(pair: Pair) -> None:
    await pair.one.save_workflow_state(workflow("w"))
    await pair.one.append_workflow_event("w", {"n": 1})
    await pair.one.append_workflow_event("v", {"n": 2})
    await pair.two.delete_workflow_state("w")
    assert await numbers(pair.one, "w") == []
    assert await numbers(pair.one, "v") == [2]


async def test_the_oldest_events_go_first(pair: Pair) -> None:
    await asyncio.gather(*(pair.one.append_workflow_event("w", {"n": n}) for n in range(11_000)))
    kept = [found.event["n"] for found in await pair.two.workflow_events("w", limit=20_000)]
    assert 10_000 <= len(kept) < 11_000
    assert kept[-1] == 10_999


async def test_what_json_cannot_hold_is_refused(pair: Pair) -> None:
    with pytest.raises(StateError) as caught:
        await pair.one.append_workflow_event("w", {"n": object()})
    assert caught.value.error_code == "STATE_NOT_SERIALIZABLE"
    assert await numbers(pair.one, "w") == []


async def test_a_manager_that_is_not_connected_has_no_log() -> None:
    with pytest.raises(StateError) as caught:
        await InMemoryStateManager().workflow_events("w")
    assert caught.value.error_code == "STATE_NOT_CONNECTED"


async def test_on_redis_the_log_expires_as_its_workflow_does(redis_url: str, prefix: str) -> None:
    async with RedisStateManager(redis_url, prefix, expires_seconds={"workflow": 0.2}) as manager:
        await manager.append_workflow_event("w", {"n": 1})
        assert await numbers(manager, "w") == [1]

        async def is_gone() -> bool:
            return await numbers(manager, "w") == []

        await wait_until(is_gone)
