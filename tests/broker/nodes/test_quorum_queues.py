"""Nodes on quorum queues: what is not shown by the tests that run on every broker."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conductor.broker.addresses import Addresses
from conductor.client import Conductor
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import MessageBusError
from tests.broker.nodes.conftest import SETTINGS, task
from tests.support import rabbitmq
from tests.support.agents import notes
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until

BURST = 30


@pytest.fixture(scope="module")
def quorum(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    rabbitmq.skip_without_ctl()
    # Not where other nodes are, which would take what is for a type.
    with rabbitmq.virtual_host(task_queues="quorum") as url:
        addresses = Addresses(url, f"{valkey_url.rpartition('/')[0]}/11")
        farm = Farm(addresses, tmp_path_factory.mktemp("nodes-quorum"), SETTINGS)
        yield farm
        farm.teardown()


@pytest.fixture(scope="module")
def nodes(quorum: Farm) -> list[AgentNode]:
    started = [quorum.start("ObedientAgent"), quorum.start("ObedientAgent")]
    quorum.setup(*started)
    return started


@pytest.fixture
async def client(quorum: Farm) -> AsyncIterator[Conductor]:
    async with Conductor(quorum.config) as conductor:
        yield conductor


def _rows(farm: Farm, *columns: str) -> dict[str, list[str]]:
    rows = rabbitmq.list_objects("queues", farm.addresses.broker_url, "name", *columns)
    return {name: values for name, *values in rows}


async def test_what_comes_to_a_busy_node_is_done_by_an_idle_one(
    client: Conductor, quorum: Farm, nodes: list[AgentNode], tmp_path: Path
) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    for busy in nodes:
        long = await client.dispatch(task("wait_for_file", file=go, log=log), busy.agent_id)
        await wait_until(lambda: notes(log))
        for _ in range(3):
            result = await (await client.dispatch(task())).result(20)
            assert result.agent_id != busy.agent_id
        go.touch()
        assert (await long.result(20)).status is TaskStatus.COMPLETED
        log.unlink()
        go.unlink()
    kinds = {name: kind for name, (kind,) in _rows(quorum, "type").items()}
    queues = ["conductor.type.coding", *(node.worker_queue for node in nodes)]
    assert [kinds[name] for name in queues] == ["quorum"] * 3


async def test_a_burst_for_types_and_agents_is_done_once_each_by_all(
    client: Conductor, nodes: list[AgentNode], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    places = [None, *(node.agent_id for node in nodes)]
    orders = [task(log=log) for _ in range(BURST)]
    handles = await asyncio.gather(
        *(client.dispatch(order, places[number % 3]) for number, order in enumerate(orders))
    )
    results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert {result.status for result in results} == {TaskStatus.COMPLETED}
    assert sorted(note["task"] for note in notes(log)) == sorted(order.task_id for order in orders)
    for number, result in enumerate(results):
        assert places[number % 3] in (None, result.agent_id)


async def test_tasks_that_wait_to_be_tried_again_keep_a_node_from_nothing(
    client: Conductor, quorum: Farm, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    slow = {"CONDUCTOR_ERRORS__RETRY__INITIAL_DELAY": "4", "CONDUCTOR_ERRORS__RETRY__MAX_DELAY": "5"}
    node = quorum.start("ThirdAgent", **slow)
    quorum.setup(node)
    wanted = [node.agent_id, None, node.agent_id]
    failing = [
        await client.dispatch(
            task("fail_with", AgentType.TEST_DATA, code="LLM_TIMEOUT", times=1, log=log), agent_id
        )
        for agent_id in wanted
    ]
    await wait_until(lambda: len(notes(log)) == len(failing), timeout=20)
    others = [await client.dispatch(task(assigned_to=AgentType.TEST_DATA, log=log), one) for one in wanted]
    for handle in others:
        assert (await handle.result(20)).status is TaskStatus.COMPLETED
    for handle in failing:
        assert (await handle.result(20)).output_data == {"attempts": 2}
    ran = [note["task"] for note in notes(log)]
    assert set(ran[:3]) == set(ran[6:]) == {handle.task_id for handle in failing}
    # Nothing is held any more, and it takes what comes.
    assert (await (await client.dispatch(task(), node.agent_id)).result(20)).status is TaskStatus.COMPLETED
    assert await wait_until(lambda: _rows(quorum, "messages")[node.worker_queue] == ["0"], timeout=20)
    node.kill("SIGTERM", reload_container=False)
    assert await asyncio.to_thread(node.container.wait) == 0


async def test_where_a_queue_is_classic_the_way_out_is_told(
    client: Conductor, quorum: Farm, valkey_url: str
) -> None:
    agent_id = f"moved-{uuid.uuid4().hex[:8]}"
    classic = Addresses(quorum.addresses.broker_url.partition("?")[0], quorum.addresses.redis_url)
    before = Farm(classic, quorum.directory, SETTINGS)
    async with Conductor(before.config) as elsewhere:
        await elsewhere.dispatch(task(), agent_id)
    told = f"The queue conductor.agent.{agent_id} is of type classic, and the broker's URL asks for quorum"
    with pytest.raises(MessageBusError, match=told) as caught:
        await client.dispatch(task(), agent_id)
    assert caught.value.error_code == "WRONG_QUEUE_TYPE"
    node = quorum.start("DevOpsProbe", agent_id)
    assert await asyncio.to_thread(node.container.wait) == 1
    assert told in node.logs()
    assert "Traceback" not in node.logs()
