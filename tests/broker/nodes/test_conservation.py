"""Of a thousand tasks none is lost and none ends twice, whatever happens to them."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from conductor.client import Conductor, TaskHandle
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.models import TaskDefinition
from tests.broker.nodes.conftest import task
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

MONITOR, BREAKABLE = AgentType.MONITOR, AgentType.DEPLOYING
LIMIT = 240


def _orders(log: Path) -> list[TaskDefinition]:
    """Tasks for any of the nodes, mixed, always in the same way."""
    orders = [
        *(task(assigned_to=MONITOR, say=number) for number in range(690)),
        *(task("fail_with", MONITOR, code="LLM_TIMEOUT", times=2, log=log) for _ in range(40)),
        *(task("fail_with", MONITOR, code="TRANSIENT_ERROR", log=log) for _ in range(40)),
        *(task("fail", MONITOR) for _ in range(60)),
        *(task("judge", MONITOR) for _ in range(40)),
        *(task("refuse", MONITOR) for _ in range(20)),
        *(task("die", MONITOR) for _ in range(6)),
        *(task("sleep", MONITOR, seconds=60, timeout=1) for _ in range(2)),
        *(task("spin", MONITOR, timeout=1) for _ in range(2)),
    ]
    random.Random(1).shuffle(orders)
    return orders


async def test_every_one_of_a_thousand_tasks_ends_exactly_once(
    conductor: Conductor, starting: Callable[..., AgentNode], farm: Farm, tmp_path: Path
) -> None:
    breaker = {"CONDUCTOR_ERRORS__BREAKER__FAILURE_THRESHOLD": "5"}
    mixed = [starting("MonitorProbe"), starting("MonitorProbe")]
    fragile = starting("BreakableAgent", **breaker)
    farm.setup(*mixed, fragile)
    before = {letter.letter_id for letter in await conductor.dead_letters.list(limit=None)}
    orders = _orders(tmp_path / "log")
    handles = list(await asyncio.gather(*(conductor.dispatch(order) for order in orders)))
    # Ten that fail in a row, and twenty behind them that a breaker keeps from running.
    breaking = [task("fail", BREAKABLE) for _ in range(10)] + [task("echo", BREAKABLE) for _ in range(20)]
    handles += [await conductor.dispatch(order, fragile.agent_id) for order in breaking]
    handles += [await conductor.dispatch(task(), f"nobody-{uuid.uuid4().hex[:8]}") for _ in range(10)]
    busy = await conductor.dispatch(task("wait_for_file", None, file=tmp_path / "go"), mixed[0].agent_id)
    expiring = [await conductor.dispatch(task(), mixed[0].agent_id, expires=0.01) for _ in range(20)]
    cancelled = [await conductor.dispatch(task(), mixed[0].agent_id) for _ in range(29)]
    assert all([await handle.cancel() for handle in cancelled])
    handles += [busy, *expiring, *cancelled]
    sent = [
        farm.app.send_task("conductor.execute_task", [{"name": ""}], queue=mixed[0].worker_queue)
        for _ in range(10)
    ]
    # One of the nodes dies in the middle of it, and comes back.
    await wait_until(lambda: _ended(handles) > 200, timeout=LIMIT)
    mixed[1].kill("SIGKILL", reload_container=False)
    starting("MonitorProbe", mixed[1].agent_id)
    (tmp_path / "go").touch()
    for bad in sent:
        handles.append(
            await wait_until(lambda task_id=str(bad.id): _found(conductor, task_id), timeout=LIMIT)
        )
    assert len({handle.task_id for handle in handles}) == 1000

    results = await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), LIMIT)
    statuses = Counter(result.status for result in results)
    letters = [one for one in await conductor.dead_letters.list(limit=None) if one.letter_id not in before]
    assert sum(statuses.values()) == 1000
    assert set(statuses) == {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.SKIPPED}
    assert statuses[TaskStatus.SKIPPED] == len(cancelled)
    failed = sorted(result.task_id for result in results if result.status is TaskStatus.FAILED)
    assert sorted(str(letter.task_id) for letter in letters) == failed
    assert {letter.reason.value for letter in letters} == {
        "retries_exhausted",
        "rejected",
        "undecodable",
        "expired",
        "unknown_agent",
        "circuit_open",
        "time_limit",
        "worker_lost",
    }
    stored = await asyncio.gather(*(conductor.state.get_task_result(result.task_id) for result in results))
    assert [(one.task_id, one.status) for one in stored if one] == [(r.task_id, r.status) for r in results]


async def _found(conductor: Conductor, task_id: str) -> TaskHandle | None:
    try:
        return await conductor.handle(task_id)
    except AgentError:
        return None


def _ended(handles: list[TaskHandle]) -> int:
    waiting = (TaskStatus.PENDING, TaskStatus.IN_PROGRESS)
    return sum(handle.status() not in waiting for handle in handles)
