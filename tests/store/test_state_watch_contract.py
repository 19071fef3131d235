"""What watching agent states promises, in memory and over Redis."""

import asyncio
import gc
from typing import Any

import pytest

from conductor.core.enums import AgentStatus
from tests.store.conftest import Pair
from tests.store.makers import START, agent, result, workflow


async def test_watching_sees_saves_updates_and_deletions_by_anybody(pair: Pair) -> None:
    await pair.one.save_agent_state(agent("before"))
    async with pair.one.watch_agent_states() as changes:
        saved = agent("a", metadata={"ü": ['"']}, updated_at=START)
        version = await pair.two.save_agent_state(saved)
        assert await _next(changes) == ("a", saved, version)
        version = await pair.one.update_agent_state("a", status="running", updated_at=START)
        assert await _next(changes) == (
            "a",
            saved.model_copy(update={"status": AgentStatus.RUNNING}),
            version,
        )
        await pair.two.save_task_result(result("a"))
        await pair.two.save_workflow_state(workflow("a"))
        await pair.two.delete_agent_state("nobody")
        await pair.two.delete_agent_state("a")
        deleted = await _next(changes)
        assert (deleted.agent_id, deleted.state) == ("a", None)
        assert deleted.version > version
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


async def _next(changes: Any) -> Any:
    return await asyncio.wait_for(anext(changes), 10)


async def test_every_watch_sees_every_change(pair: Pair) -> None:
    async with pair.one.watch_agent_states() as first, pair.two.watch_agent_states() as second:
        for number in range(3000):
            await pair.one.save_agent_state(agent(str(number)))
        for watch in (first, second):
            assert [(await _next(watch)).agent_id for _ in range(3000)] == [str(n) for n in range(3000)]


async def test_a_watch_without_context_starts_at_the_first_step_and_ends_with_the_loop(pair: Pair) -> None:
    async def first_change() -> str:
        async for change in pair.one.watch_agent_states():
            return change.agent_id
        raise AssertionError("the watch ended")

    async def write() -> None:
        while True:
            await pair.two.save_agent_state(agent("a"))
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    assert await asyncio.wait_for(first_change(), 10) == "a"
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    gc.collect()


async def test_disconnecting_ends_watches(pair: Pair) -> None:
    watch = pair.one.watch_agent_states()
    await watch.start()
    waiting = asyncio.create_task(_collect(watch))
    await pair.two.save_agent_state(agent("a"))
    await pair.one.disconnect()
    assert len(await asyncio.wait_for(waiting, 10)) <= 1


async def _collect(watch: Any) -> list[Any]:
    return [change async for change in watch]


async def test_nothing_is_left_after_disconnect(pair: Pair) -> None:
    before = asyncio.all_tasks()
    async with pair.one.watch_agent_states() as changes:
        await pair.two.save_agent_state(agent("a"))
        await _next(changes)
    await asyncio.gather(*(pair.two.save_agent_state(agent(str(number))) for number in range(100)))
    await pair.one.disconnect()
    await pair.two.disconnect()
    assert asyncio.all_tasks() == before
