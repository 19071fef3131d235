"""Dispatching tasks to agents on nodes."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest
import redis.asyncio as redis
from celery.result import AsyncResult

from conductor.client import Conductor
from conductor.core.config import BusConfig
from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.models import TaskDefinition
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until


async def test_a_task_for_a_type_is_done_and_its_result_is_kept(
    conductor: Conductor, agent: AgentNode
) -> None:
    order = task(say="hello")
    handle = await conductor.dispatch(order)
    result = await handle.result(20)
    assert result.status is TaskStatus.COMPLETED
    assert result.output_data["echo"] == "hello"
    assert result.task_id == handle.task_id == order.task_id
    assert result.duration_seconds is not None
    assert handle.status() is TaskStatus.COMPLETED
    assert await conductor.state.get_task_result(order.task_id) == result


async def test_a_task_for_one_agent_is_done_by_it(
    conductor: Conductor, agent: AgentNode, other: AgentNode
) -> None:
    for node in (agent, other):
        handle = await conductor.dispatch(task(assigned_to=None), agent_id=node.agent_id)
        assert (await handle.result(20)).agent_id == node.agent_id


async def test_celery_knows_the_task_under_its_id_and_shows_its_name(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    order = task(say="hello")
    result = await (await conductor.dispatch(order)).result(20)
    record = AsyncResult(order.task_id, app=farm.app)
    assert record.state == "SUCCESS"
    assert record.result == result.model_dump(mode="json")
    assert record.name == "conductor.execute_task"
    assert record.worker.startswith(f"{result.agent_id}@")
    wait_for = f"{order.name}[{order.task_id}]"
    assert any(wait_for in node.logs() for node in farm.nodes)


async def test_the_agent_is_running_with_the_tasks_id_and_then_idle(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go")
    handle = await conductor.dispatch(order, agent.agent_id)
    assert handle.status() in (TaskStatus.PENDING, TaskStatus.IN_PROGRESS)

    async def running() -> bool:
        state = await conductor.state.get_agent_state(agent.agent_id)
        return bool(state and state.status is AgentStatus.RUNNING and state.current_task_id == order.task_id)

    await wait_until(running)
    assert handle.status() is TaskStatus.IN_PROGRESS
    (tmp_path / "go").touch()
    await handle.result(20)
    state = await conductor.state.get_agent_state(agent.agent_id)
    assert state is not None
    assert (state.status, state.current_task_id) == (AgentStatus.IDLE, None)
    assert order.task_id in state.completed_tasks
    assert state.last_heartbeat is not None


async def test_tasks_for_a_type_go_to_the_agent_that_is_free(
    conductor: Conductor, agent: AgentNode, other: AgentNode, tmp_path: Path
) -> None:
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    await wait_until(lambda: busy.status() is TaskStatus.IN_PROGRESS)
    own = [await conductor.dispatch(task(), agent.agent_id) for _ in range(3)]
    handles = [await conductor.dispatch(task()) for _ in range(6)]
    results = await asyncio.gather(*(handle.result(20) for handle in handles))
    assert {result.agent_id for result in results} == {other.agent_id}
    (tmp_path / "go").touch()
    results = await asyncio.gather(*(handle.result(20) for handle in (busy, *own)))
    assert {result.agent_id for result in results} == {agent.agent_id}


@pytest.mark.parametrize("farm", ["valkey"], indirect=True)
async def test_a_node_that_fetches_ahead_leaves_the_tasks_for_its_type_to_others(
    conductor: Conductor, agent: AgentNode, other: AgentNode, tmp_path: Path
) -> None:
    def waiting(name: str) -> TaskDefinition:
        return task("wait_for_file", None, file=tmp_path / name, log=tmp_path / f"{name}.log")

    elsewhere = await conductor.dispatch(waiting("elsewhere"), other.agent_id)
    await wait_until(lambda: notes(tmp_path / "elsewhere.log"))
    names = ("before", "first", "second")
    own = [await conductor.dispatch(waiting(name), agent.agent_id) for name in names]
    (tmp_path / "before").touch()
    await wait_until(lambda: notes(tmp_path / "first.log"))
    shared = await conductor.dispatch(task())
    (tmp_path / "first").touch()
    await wait_until(lambda: notes(tmp_path / "second.log"))
    (tmp_path / "elsewhere").touch()
    assert (await shared.result(20)).agent_id == other.agent_id
    assert own[2].status() is TaskStatus.IN_PROGRESS
    (tmp_path / "second").touch()
    await asyncio.gather(*(handle.result(20) for handle in (elsewhere, *own)))


async def test_a_task_for_a_type_is_done_between_many_for_the_agent(
    conductor: Conductor, devops: AgentNode, tmp_path: Path
) -> None:
    """An agent that has always something to do for itself does not starve its type."""
    busy = await conductor.dispatch(task("wait_for_file", None, file=tmp_path / "go"), devops.agent_id)
    own = await asyncio.gather(*(conductor.dispatch(task(), devops.agent_id) for _ in range(200)))
    shared = await conductor.dispatch(task(assigned_to=AgentType.DEVOPS))
    (tmp_path / "go").touch()
    await shared.result(60)
    assert own[-1].status() is not TaskStatus.COMPLETED
    await asyncio.gather(busy.result(60), *(handle.result(60) for handle in own))


async def test_tasks_wait_for_a_busy_agent_one_at_a_time(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go", log=log), agent.agent_id)
    await wait_until(lambda: len(notes(log)) == 1)
    second = await conductor.dispatch(task(log=log), agent.agent_id)
    with pytest.raises(ConductorError) as caught:
        await second.result(0.3)
    assert caught.value.error_code == "TASK_TIMEOUT"
    assert second.task_id in str(caught.value)
    assert len(notes(log)) == 1
    (tmp_path / "go").touch()
    results = [await first.result(20), await second.result(20)]
    assert [result.status for result in results] == [TaskStatus.COMPLETED] * 2


async def test_an_agent_that_raises_gives_a_failed_result_and_celery_a_traceback(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    order = task("fail", say="the disk is full")
    handle = await conductor.dispatch(order, agent.agent_id)
    result = await handle.result(20)
    assert result.status is handle.status() is TaskStatus.FAILED
    assert result.error_message == "ValueError: the disk is full"
    assert result.metadata["error"]["error_type"] == "ValueError"
    record = AsyncResult(order.task_id, app=farm.app)
    assert record.state == "FAILURE"
    assert "_do_fail" in record.traceback
    assert "ValueError: the disk is full" in record.traceback
    assert "the disk is full" in str(record.result)
    state = await conductor.state.get_agent_state(agent.agent_id)
    assert state is not None
    assert order.task_id in state.failed_tasks
    assert await conductor.state.get_task_result(order.task_id) == result


@pytest.mark.parametrize(
    ("do", "code"), [("refuse", "TASK_VALIDATION_FAILED"), ("fail_as_agent", "GIVES_UP")]
)
async def test_an_error_of_the_agent_itself_is_a_failed_result_with_its_code(
    conductor: Conductor, agent: AgentNode, do: str, code: str
) -> None:
    order = task(do)
    before = await conductor.state.get_agent_state(agent.agent_id)
    result = await (await conductor.dispatch(order, agent.agent_id)).result(20)
    assert result.status is TaskStatus.FAILED
    assert result.metadata["error"]["error_code"] == code
    after = await conductor.state.get_agent_state(agent.agent_id)
    assert before is not None
    assert after is not None
    assert after.error_count == before.error_count + 1
    assert order.task_id in after.failed_tasks


async def test_a_task_without_agent_and_type_is_refused(conductor: Conductor) -> None:
    with pytest.raises(AgentError) as caught:
        await conductor.dispatch(task(assigned_to=None))
    assert caught.value.error_code == "NO_AGENT_TYPE"


async def test_filing_a_task_once_more_after_a_lost_answer_is_no_second_dispatch(
    conductor: Conductor, agent: AgentNode
) -> None:
    """As the link does when its connection is lost between the filing and the answer."""
    order, dispatcher = task(), conductor._open("test").dispatcher
    await dispatcher._open_record(order, "run-1", agent.agent_id)
    await dispatcher._open_record(order, "run-1", agent.agent_id)
    with pytest.raises(AgentError) as caught:
        await dispatcher._open_record(order, "run-2", agent.agent_id)
    assert caught.value.error_code == "TASK_ALREADY_DISPATCHED"


async def test_a_task_that_has_not_ended_is_not_dispatched_twice(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go", log=tmp_path / "log")
    handle = await conductor.dispatch(order, agent.agent_id)
    with pytest.raises(AgentError) as caught:
        await conductor.dispatch(order, agent.agent_id)
    assert caught.value.error_code == "TASK_ALREADY_DISPATCHED"
    (tmp_path / "go").touch()
    await handle.result(20)
    assert len(notes(tmp_path / "log")) == 1


async def test_a_task_that_has_ended_may_be_dispatched_again(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    order = task(log=tmp_path / "log")
    for _ in range(2):
        handle = await conductor.dispatch(order)
        assert (await handle.result(20)).status is TaskStatus.COMPLETED
    assert len(notes(tmp_path / "log")) == 2


async def test_a_task_is_found_again_by_its_id(
    conductor: Conductor, agent: AgentNode, farm: Farm, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go")
    await conductor.dispatch(order)
    async with Conductor(farm.config) as elsewhere:
        handle = await elsewhere.handle(order.task_id)
        (tmp_path / "go").touch()
        assert (await handle.result(20)).status is TaskStatus.COMPLETED
        again = await elsewhere.handle(order.task_id)
        assert again.status() is TaskStatus.COMPLETED
        with pytest.raises(AgentError) as caught:
            await elsewhere.handle("nobody-knows")
    assert caught.value.error_code == "TASK_NOT_FOUND"


async def test_two_hundred_results_are_waited_for_over_few_connections(
    conductor: Conductor, agent: AgentNode, farm: Farm
) -> None:
    client = redis.Redis.from_url(farm.addresses.redis_url)
    before = len(await client.client_list())
    handles = await asyncio.gather(*(conductor.dispatch(task(say=number)) for number in range(200)))
    waiting = asyncio.gather(*(handle.result(60) for handle in handles))
    await asyncio.sleep(0)
    assert len(await client.client_list()) - before < 30
    results = await waiting
    assert [result.output_data["echo"] for result in results] == list(range(200))
    await client.aclose()


async def test_a_waiting_task_is_cancelled_and_never_runs(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    waiting = await conductor.dispatch(task(log=log), agent.agent_id)
    assert await waiting.cancel()
    result = await waiting.result(20)
    assert result.status is waiting.status() is TaskStatus.SKIPPED
    assert "cancelled" in str(result.error_message)
    assert await conductor.state.get_task_result(waiting.task_id) is not None
    (tmp_path / "go").touch()
    await busy.result(20)
    last = await conductor.dispatch(task(log=log), agent.agent_id)
    await last.result(20)
    assert [note["task"] for note in notes(log)] == [last.task_id]
    assert not await waiting.cancel()


async def test_a_task_whose_dispatching_is_cancelled_is_cancelled(conductor: Conductor, farm: Farm) -> None:
    order = task()
    async with Proxy(farm.addresses.broker_url) as proxy:
        limits = {"publish_timeout": 1, "connect_timeout": 1}
        config = farm.config.model_copy(update={"broker_url": proxy.url, "bus": BusConfig(**limits)})
        async with Conductor(config) as cut_off:
            proxy.fall_silent()
            dispatching = asyncio.ensure_future(cut_off.dispatch(order, "nobody"))
            await wait_until(partial(_is_known, conductor, order.task_id))
            dispatching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dispatching
            # It may be on its way, to be refused by whichever node gets it.
            result = await (await conductor.handle(order.task_id)).result(5)
            assert result.status is TaskStatus.SKIPPED
            await proxy.stop()


async def _is_known(conductor: Conductor, task_id: str) -> bool:
    try:
        await conductor.handle(task_id)
    except AgentError:
        return False
    return True


@pytest.mark.parametrize("do", ["sleep", "block"])
async def test_a_running_task_is_cancelled(
    conductor: Conductor, agent: AgentNode, farm: Farm, do: str, tmp_path: Path
) -> None:
    order = task(do, seconds=50, log=tmp_path / "log")
    handle = await conductor.dispatch(order, agent.agent_id)
    await wait_until(lambda: len(notes(tmp_path / "log")) == 1)
    assert await handle.cancel()
    result = await handle.result(20)
    assert result.status is TaskStatus.SKIPPED
    stored = await conductor.state.get_task_result(order.task_id)
    assert stored is not None
    assert (stored.status, stored.agent_id) == (TaskStatus.SKIPPED, agent.agent_id)
    assert AsyncResult(order.task_id, app=farm.app).state == "REVOKED"
    assert (
        await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    ).status is TaskStatus.COMPLETED
    # The id is not refused from now on, as after Celery's own revoke.
    order = order.model_copy(update={"input_data": {"do": "echo"}})
    assert (await (await conductor.dispatch(order, agent.agent_id)).result(20)).status is TaskStatus.COMPLETED


async def test_the_record_of_a_waiting_task_is_json_that_celery_reads(
    conductor: Conductor, farm: Farm
) -> None:
    handle = await conductor.dispatch(task(), agent_id="nobody-of-this-name")
    record = AsyncResult(handle.task_id, app=farm.app)
    assert record.state == "PENDING"
    client = redis.Redis.from_url(farm.addresses.redis_url)
    raw = await client.get(f"celery-task-meta-{handle.task_id}")
    assert raw is not None
    assert json.loads(raw)["name"] == "conductor.execute_task"
    await client.aclose()
    assert await handle.cancel()


async def test_dispatch_task_says_when_there_is_no_agent(conductor: Conductor) -> None:
    with pytest.raises(AgentError) as caught:
        await conductor.dispatch_task(task(assigned_to=AgentType.MONITOR), agent_timeout=0.3)
    assert caught.value.error_code == "NO_AVAILABLE_AGENT"
    assert "monitor" in str(caught.value)


async def test_dispatch_task_gives_the_result(conductor: Conductor, agent: AgentNode) -> None:
    assert (await conductor.dispatch_task(task(say="x"))).output_data["echo"] == "x"
