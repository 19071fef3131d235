"""Time limits, whatever the agent's code does, and heartbeats meanwhile."""

from datetime import timedelta
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.enums import AgentStatus, TaskStatus
from conductor.core.fields import utc_now
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode
from tests.support.waiting import wait_until


@pytest.mark.parametrize("do", ["sleep", "block", "spin", "ignore_cancelling"])
async def test_a_task_that_takes_too_long_fails_and_the_agent_is_usable_afterwards(
    conductor: Conductor, agent: AgentNode, do: str
) -> None:
    order = task(do, seconds=50, timeout=1)
    handle = await conductor.dispatch(order, agent.agent_id)
    result = await handle.result(30)
    assert result.status is TaskStatus.FAILED
    assert "timed out after 1 s" in str(result.error_message)
    assert result.agent_id == agent.agent_id
    assert await conductor.state.get_task_result(order.task_id) == result
    after = await (await conductor.dispatch(task(), agent.agent_id)).result(30)
    assert after.status is TaskStatus.COMPLETED
    state = await conductor.state.get_agent_state(agent.agent_id)
    assert state is not None
    assert (state.status, state.current_task_id) == (AgentStatus.IDLE, None)
    assert order.task_id in state.failed_tasks
    assert agent.container.status == "running"


async def test_a_sleeping_task_is_ended_without_a_new_process(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for order in (task("sleep", seconds=50, timeout=1, log=log), task(log=log)):
        await (await conductor.dispatch(order, agent.agent_id)).result(30)
    pids = [note["pid"] for note in notes(log)]
    assert pids[0] == pids[1]


async def test_heartbeats_go_on_while_the_agent_blocks_its_process(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    order = task("block", seconds=3, log=tmp_path / "log")
    handle = await conductor.dispatch(order, agent.agent_id)
    await wait_until(lambda: notes(tmp_path / "log"))
    begin = utc_now()

    async def beaten() -> bool:
        state = await conductor.state.get_agent_state(agent.agent_id)
        assert state is not None
        assert state.status is AgentStatus.RUNNING
        assert state.current_task_id == order.task_id
        return bool(state.last_heartbeat and state.last_heartbeat > begin + timedelta(seconds=1))

    await wait_until(beaten)
    assert handle.status() is TaskStatus.IN_PROGRESS
    assert (await handle.result(20)).status is TaskStatus.COMPLETED
