"""What changing a part of a state promises, in memory and over Redis."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from conductor.core.enums import AgentStatus, TaskStatus
from conductor.core.exceptions import StateError
from conductor.core.state import AgentState
from conductor.orchestration.state_manager import StateManager
from tests.store.conftest import Pair
from tests.store.makers import START, agent, result, workflow


def code(caught: pytest.ExceptionInfo[StateError]) -> str:
    return caught.value.error_code


async def _agent(manager: StateManager, agent_id: str = "same") -> AgentState:
    found = await manager.get_agent_state(agent_id)
    assert found is not None
    return found


async def test_update_touches_the_named_fields_only(manager: StateManager) -> None:
    before = agent("a", completed_tasks=["1"], metadata={"k": 1}, updated_at=START)
    await manager.save_agent_state(before)
    await manager.update_agent_state("a", status="running", current_task_id="t")
    after = await _agent(manager, "a")
    assert (after.status, after.current_task_id) == (AgentStatus.RUNNING, "t")
    assert after.updated_at > START
    expected = before.model_copy(
        update={"status": AgentStatus.RUNNING, "current_task_id": "t", "updated_at": after.updated_at}
    )
    assert after == expected


async def test_update_of_updated_at_and_times(manager: StateManager) -> None:
    await manager.save_agent_state(agent("a"))
    await manager.update_agent_state("a", updated_at=START, last_heartbeat=START, metadata={"x": [1]})
    after = await _agent(manager, "a")
    assert (after.updated_at, after.last_heartbeat, after.metadata) == (START, START, {"x": [1]})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": "red"}, "colour"),
        ({"_version": 5}, "_version"),
        ({"status": "asleep"}, "status"),
        ({"error_count": -1}, "error_count"),
        ({"completed_tasks": "t"}, "completed_tasks"),
        ({"last_heartbeat": datetime(2026, 1, 1)}, "last_heartbeat"),  # noqa: DTZ001
        ({"created_at": START}, "created_at"),
        ({"metadata": {"x": object()}}, "metadata"),
        ({"increment": {"colour": 1}}, "colour"),
        ({"increment": {"status": 1}}, "status"),
        ({"increment": {"error_count": 1.5}}, "error_count"),
        ({"increment": {"error_count": 1}, "error_count": 3}, "error_count"),
        ({"increment": {"error_count": -3}}, "error_count"),
    ],
)
async def test_an_impossible_update_is_refused_by_field(
    manager: StateManager, changes: dict[str, Any], named: str
) -> None:
    before = agent("a", error_count=2)
    await manager.save_agent_state(before)
    with pytest.raises(StateError, match=named) as caught:
        await manager.update_agent_state("a", **changes)
    assert code(caught) == "STATE_INVALID"
    assert await manager.get_agent_state("a") == before


async def test_update_of_a_missing_agent_makes_none(manager: StateManager) -> None:
    with pytest.raises(StateError, match="nobody") as caught:
        await manager.update_agent_state("nobody", status="idle")
    assert code(caught) == "STATE_NOT_FOUND"
    assert await manager.list_agent_states() == []


async def test_fifty_concurrent_writers_lose_nothing(pair: Pair) -> None:
    await pair.one.save_agent_state(agent("a"))

    async def write(number: int) -> None:
        manager = pair.one if number % 2 else pair.two
        for _ in range(4):
            await manager.update_agent_state("a", increment={"error_count": 1})

    await asyncio.gather(
        *map(write, range(50)),
        pair.one.update_agent_state("a", status="running"),
        pair.two.update_agent_state("a", metadata={"kept": True}),
    )
    state = await _agent(pair.one, "a")
    assert (state.error_count, state.status, state.metadata) == (200, AgentStatus.RUNNING, {"kept": True})


async def test_results_are_added_to_a_workflow_one_by_one(pair: Pair) -> None:
    run = workflow("w", task_results={"0": result("0")}, metadata={"k": 1})
    await pair.one.save_workflow_state(run)
    await pair.two.save_workflow_task_result("w", result("1"))
    await pair.one.save_workflow_task_result("w", result("0", status=TaskStatus.FAILED))
    await pair.two.save_workflow_agent_state("w", agent("a", updated_at=START))
    run.task_results = {"0": result("0", status=TaskStatus.FAILED), "1": result("1")}
    run.agent_states = {"a": agent("a", updated_at=START)}
    assert await pair.one.get_workflow_state("w") == run


async def test_parts_of_a_missing_workflow_make_none(manager: StateManager) -> None:
    with pytest.raises(StateError, match="nowhere") as caught:
        await manager.save_workflow_task_result("nowhere", result("1"))
    assert code(caught) == "STATE_NOT_FOUND"
    with pytest.raises(StateError, match="output_data"):
        await manager.save_workflow_task_result("nowhere", result("1", output_data={"x": object()}))
    assert await manager.get_workflow_state("nowhere") is None


async def test_whole_saves_of_a_workflow_win_over_parts_before_and_between(pair: Pair) -> None:
    run = workflow("w", task_results={str(number): result(str(number)) for number in range(5)})
    await pair.one.save_workflow_state(run)
    del run.task_results["3"]
    run.task_results["4"] = result("4", status=TaskStatus.FAILED)
    run.error_log.append({"e": 1})
    await pair.one.save_workflow_state(run)
    assert await pair.two.get_workflow_state("w") == run
    await pair.two.save_workflow_task_result("w", result("of two"))
    await pair.two.save_workflow_task_result("w", result("1", status=TaskStatus.FAILED))
    await pair.one.save_workflow_state(run)
    assert await pair.two.get_workflow_state("w") == run
    await pair.two.delete_workflow_state("w")
    await pair.one.save_workflow_state(run)
    assert await pair.two.get_workflow_state("w") == run


async def test_a_workflow_may_be_large(pair: Pair) -> None:
    run = workflow("w", task_results={str(number): result(str(number)) for number in range(20_000)})
    await pair.one.save_workflow_state(run)
    await pair.two.save_workflow_task_result("w", result("one more"))
    await pair.one.save_workflow_state(run)
    assert await pair.two.get_workflow_state("w") == run
    run.task_results.clear()
    await pair.one.save_workflow_state(run)
    assert await pair.two.get_workflow_state("w") == run
