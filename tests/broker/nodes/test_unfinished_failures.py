"""Failures of tasks that could not be told at first are told by whoever comes next, and once."""

import asyncio
import json
import uuid
from pathlib import Path

import pytest
import redis.asyncio as redis

from conductor.broker import topology
from conductor.broker.dead_letter_sender import DeadLetterSender
from conductor.broker.node_errors import ErrorDesk
from conductor.broker.records import Run, Start, TaskRecords, record_key
from conductor.broker.results import result_without_agent
from conductor.broker.task_letters import Original
from conductor.client import Conductor
from conductor.core.channels import ERRORS
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import MessageBusError, StateError
from conductor.core.messages import AgentMessage
from conductor.store.endpoint import read_url
from conductor.store.link import Link
from conductor.store.redis_state import RedisStateManager
from tests.broker.nodes.conftest import task, the_letter
from tests.support.agents import notes
from tests.support.buses import Inbox
from tests.support.nodes import AgentNode, Farm
from tests.support.waiting import wait_until


async def test_a_node_that_died_while_it_put_a_task_aside_has_the_letter_sent_by_the_next(
    conductor: Conductor, agent: AgentNode, farm: Farm, store: redis.Redis
) -> None:
    """What it had done is put there by hand: the record of the failure, and no letter."""
    nobody, order = f"nobody-{uuid.uuid4().hex[:8]}", task()
    result = result_without_agent(order.task_id, nobody, TaskStatus.FAILED, "no agent", "AGENT_NOT_FOUND")
    error = {"exc_type": "TaskFailed", "exc_message": ["no agent", result.model_dump(mode="json")]}
    filed = {"status": "FAILURE", "result": error, "kwargs": {"run": "r"}, "task_id": order.task_id}
    await store.set(
        record_key(order.task_id), json.dumps({"letter": "unknown_agent 0 - 0 the-letter", **filed})
    )
    await asyncio.to_thread(
        farm.app.send_task,
        "conductor.execute_task",
        [order.model_dump(mode="json")],
        {"run": "r"},
        task_id=order.task_id,
        queue=topology.agent_queue(nobody),
    )
    await (await conductor.dispatch(task(), nobody)).result(20)
    assert (await (await conductor.handle(order.task_id)).result(20)).error_message == "no agent"
    assert (await the_letter(conductor, order.task_id)).letter_id == "the-letter"


async def test_a_failure_whose_process_died_before_it_sent_the_letter_gets_it_with_the_next_delivery(
    conductor: Conductor, agent: AgentNode, farm: Farm, store: redis.Redis, tmp_path: Path
) -> None:
    """What the process that died had done is put there by hand: the record of the failure, and no letter."""
    failed = task("judge")
    result = await (await conductor.dispatch(failed, agent.agent_id)).result(20)
    record = json.loads(await store.get(record_key(failed.task_id)))
    order, run, letter_id = task(log=tmp_path / "log"), uuid.uuid4().hex, uuid.uuid4().hex
    mine = result.model_copy(update={"task_id": order.task_id}).model_dump(mode="json")
    record |= {"task_id": order.task_id, "kwargs": {"run": run}}
    record["result"]["exc_message"][1] = mine
    unfinished = {"letter": f"retries_exhausted 4 2026-01-01T00:00:00+00:00 0 {letter_id}", **record}
    await store.set(record_key(order.task_id), json.dumps(unfinished))
    handle = await conductor.handle(order.task_id)
    with pytest.raises(Exception, match="has not ended"):
        await handle.result(0.05)
    for _ in range(2):  # and only once, however often it is delivered
        farm.app.send_task(
            "conductor.execute_task",
            [order.model_dump(mode="json")],
            {"run": run},
            task_id=order.task_id,
            queue=agent.worker_queue,
        )
    assert (await handle.result(20)).error_message == "it is not good"
    await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    letter = await the_letter(conductor, order.task_id)
    assert (letter.letter_id, letter.reason, letter.attempts) == (letter_id, "retries_exhausted", 4)
    assert not notes(tmp_path / "log")


async def test_a_failure_is_escalated_once_although_it_could_not_be_filed_at_first(
    conductor: Conductor, farm: Farm, escalated: Inbox
) -> None:
    order, addresses = task(), farm.addresses
    run = Run(order.task_id, "run", "a task", "a@test", "q", 0, [], lambda: Original("q", "[]"))
    async with RedisStateManager(addresses.redis_url) as state:
        records = TaskRecords(state.link, 60)

        def desk(broker_url: str, records: TaskRecords = records) -> ErrorDesk:
            letters = DeadLetterSender(broker_url, 2, 2)
            return ErrorDesk(records, state, letters, farm.config.errors, conductor.bus)

        result = result_without_agent(order.task_id, "a", TaskStatus.FAILED, "no", "UNKNOWN_ERROR")
        nowhere = Link(read_url("redis://127.0.0.1:1/0"), 0.2, 0.2, 0.2)
        with pytest.raises(StateError):
            await desk(addresses.broker_url, TaskRecords(nowhere, 60)).failed(run, Start(), None, result)
        with pytest.raises(MessageBusError):
            await desk("redis://127.0.0.1:1/0").failed(run, Start(), None, result)
        found = await records.start(run, None)
        assert found.end is not None
        await desk(addresses.broker_url).finish(run, found.end)
    assert (await the_letter(conductor, order.task_id)).escalated
    await conductor.bus.publish(ERRORS, AgentMessage(message_type=MessageType.ERROR, sender_id="last"))
    await wait_until(lambda: escalated.messages and escalated.messages[-1].sender_id == "last")
    assert [one.payload.get("task_id") for one in escalated.messages] == [order.task_id, None]


async def test_a_letter_that_cannot_be_sent_is_an_error(farm: Farm) -> None:
    sender = DeadLetterSender("redis://127.0.0.1:1/0", 0.2, 0.2)
    with pytest.raises(MessageBusError) as raised:
        await asyncio.to_thread(sender.send, DeadLetter(reason=DeadLetterReason.EXPIRED))
    assert raised.value.error_code == "BROKER_UNAVAILABLE"
