"""A Conductor in memory does what one with nodes does."""

import asyncio

import pytest
from pydantic import BaseModel

from conductor import (
    AgentError,
    AgentMessage,
    AgentStatus,
    AgentType,
    ConductorConfig,
    ConductorError,
    MaxConcurrentTasksPolicy,
    MessageBusError,
    MessageType,
    PolicyEngine,
    PolicyViolationError,
    TaskDefinition,
    TaskStatus,
    WorkflowDefinition,
    WorkflowEngine,
    agent,
)
from conductor.testing import InMemoryConductor

STOP = AgentMessage(message_type=MessageType.CONTROL, sender_id="test", payload={"command": "stop"})


class Text(BaseModel):
    text: str


@agent("coding")
async def shout(data: Text) -> Text:
    return Text(text=data.text.upper())


class Gate:
    """An agent that works until it is let go, and what it was given, in order."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.began: list[str] = []
        self.busy = asyncio.Event()

        @agent("review")
        async def wait(data: dict[str, str]) -> dict[str, str]:
            self.began.append(data["name"])
            self.busy.set()
            await self.open.wait()
            return data

        self.agent = wait

    def task(self, name: str, **fields: object) -> TaskDefinition:
        return TaskDefinition(name=name, assigned_to=AgentType.REVIEW, input_data={"name": name}, **fields)


async def test_an_agent_does_a_task_by_type_and_by_id(memory_conductor: InMemoryConductor) -> None:
    made = await memory_conductor.add_agent(shout)
    assert made.agent_id == "shout-1"
    assert await shout.run(memory_conductor, Text(text="a")) == Text(text="A")
    handle = await memory_conductor.dispatch(TaskDefinition(name="b", input_data={"text": "b"}), "shout-1")
    result = await handle.result(5)
    assert result.output_data == {"text": "B"}
    assert await memory_conductor.state.get_task_result(handle.task_id) == result
    assert (await memory_conductor.handle(handle.task_id)).status() is TaskStatus.COMPLETED


async def test_ids_are_counted_and_a_second_agent_of_an_id_is_refused(
    memory_conductor: InMemoryConductor,
) -> None:
    ids = [(await memory_conductor.add_agent(shout)).agent_id for _ in range(2)]
    assert ids == ["shout-1", "shout-2"]
    with pytest.raises(AgentError) as caught:
        await memory_conductor.add_agent(shout("shout-1", memory_conductor.config))
    assert caught.value.error_code == "AGENT_ALREADY_REGISTERED"


async def test_a_task_waits_for_an_agent_that_is_added_later(memory_conductor: InMemoryConductor) -> None:
    handle = await memory_conductor.dispatch(shout.task(Text(text="late")))
    with pytest.raises(ConductorError) as caught:
        await handle.result(0.01)
    assert caught.value.error_code == "TASK_TIMEOUT"
    assert handle.status() is TaskStatus.PENDING
    await memory_conductor.add_agent(shout)
    assert (await handle.result(5)).output_data == {"text": "LATE"}


async def test_an_agent_has_one_task_at_a_time_and_the_rest_wait_in_order(
    memory_conductor: InMemoryConductor,
) -> None:
    gate = Gate()
    await memory_conductor.add_agent(gate.agent)
    handles = [await memory_conductor.dispatch(gate.task(name)) for name in "abcd"]
    await asyncio.wait_for(gate.busy.wait(), 5)
    assert [handle.status() for handle in handles] == [TaskStatus.IN_PROGRESS] + 3 * [TaskStatus.PENDING]
    assert gate.began == ["a"]
    [state] = await memory_conductor.living_agents()
    assert (state.status, state.current_task_id) == (AgentStatus.RUNNING, handles[0].task_id)
    gate.open.set()
    for handle in handles:
        assert (await handle.result(5)).status is TaskStatus.COMPLETED
    assert gate.began == ["a", "b", "c", "d"]


async def test_what_runs_and_what_waits_can_be_cancelled(memory_conductor: InMemoryConductor) -> None:
    gate = Gate()
    await memory_conductor.add_agent(gate.agent)
    running, waiting, last = [await memory_conductor.dispatch(gate.task(name)) for name in "abc"]
    await asyncio.wait_for(gate.busy.wait(), 5)
    for handle in (waiting, running):
        assert await handle.cancel()
        assert (await handle.result(5)).status is TaskStatus.SKIPPED
        assert not await handle.cancel()
    saved = await memory_conductor.state.get_task_result(running.task_id)
    assert saved is not None
    assert saved.status is TaskStatus.SKIPPED
    gate.open.set()
    assert (await last.result(5)).status is TaskStatus.COMPLETED
    assert gate.began == ["a", "c"]


async def test_a_task_fails_with_the_code_it_would_have_on_a_node(
    memory_conductor: InMemoryConductor,
) -> None:
    await memory_conductor.add_agent(shout)
    handle = await memory_conductor.dispatch(TaskDefinition(name="bad", assigned_to=AgentType.CODING))
    result = await handle.result(5)
    assert (result.status, result.agent_id) == (TaskStatus.FAILED, "shout-1")
    assert result.metadata["error"]["error_code"] == "TASK_VALIDATION_FAILED"


async def test_a_task_that_takes_too_long_or_waits_too_long_fails(
    memory_conductor: InMemoryConductor,
) -> None:
    gate = Gate()
    await memory_conductor.add_agent(gate.agent)
    slow = await memory_conductor.dispatch(gate.task("slow", timeout_seconds=1))
    late = await memory_conductor.dispatch(gate.task("late"), expires=0.01)
    codes = [(await handle.result(10)).metadata["error"]["error_code"] for handle in (late, slow)]
    assert codes == ["TASK_EXPIRED", "TASK_TIMED_OUT"]
    assert gate.began == ["slow"]


async def test_an_error_that_may_pass_is_tried_again() -> None:
    tries: list[int] = []

    @agent("test")
    async def shaky(data: dict[str, int]) -> dict[str, int]:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ConductorError("not now", "TRANSIENT_ERROR")
        return {"tries": len(tries)}

    config = ConductorConfig(errors={"retry": {"initial_delay": 0.001}})
    async with InMemoryConductor(config) as conductor:
        await conductor.add_agent(shaky)
        assert await shaky.run(conductor) == {"tries": 3}


async def test_a_task_for_nobody_is_refused_and_so_is_one_that_runs(
    memory_conductor: InMemoryConductor,
) -> None:
    with pytest.raises(AgentError) as caught:
        await memory_conductor.dispatch(TaskDefinition(name="nobody"))
    assert caught.value.error_code == "NO_AGENT_TYPE"
    task = shout.task(Text(text="twice"))
    handle = await memory_conductor.dispatch(task)
    with pytest.raises(AgentError) as caught:
        await memory_conductor.dispatch(task)
    assert caught.value.error_code == "TASK_ALREADY_DISPATCHED"
    await handle.cancel()
    await handle.result(5)
    await memory_conductor.add_agent(shout)
    assert (await (await memory_conductor.dispatch(task)).result(5)).status is TaskStatus.COMPLETED


async def test_policies_decide_before_a_task_is_dispatched() -> None:
    gate, engine = Gate(), PolicyEngine()
    engine.register_policy(MaxConcurrentTasksPolicy(1))
    async with InMemoryConductor(policy_engine=engine) as conductor:
        await conductor.add_agent(gate.agent)
        first = await conductor.dispatch(gate.task("first"))
        with pytest.raises(PolicyViolationError):
            await conductor.dispatch(gate.task("second"))
        third = asyncio.create_task(conductor.dispatch(gate.task("third"), wait=10))
        gate.open.set()
        assert (await first.result(5)).status is TaskStatus.COMPLETED
        assert (await (await third).result(5)).status is TaskStatus.COMPLETED
    assert gate.began == ["first", "third"]


async def test_policies_of_the_configuration_count() -> None:
    config = ConductorConfig(policies=[{"budget": {"limit": 1}}])
    async with InMemoryConductor(config) as conductor:
        await conductor.add_agent(shout)
        dear = shout.task(Text(text="dear"), metadata={"cost": 2, "workflow_id": "w"})
        with pytest.raises(PolicyViolationError):
            await conductor.dispatch(dear)


async def test_agents_hear_messages_and_answer_requests(memory_conductor: InMemoryConductor) -> None:
    made = await memory_conductor.add_agent(shout)

    async def ask(payload: dict[str, object]) -> AgentMessage:
        message = AgentMessage(message_type=MessageType.TASK_ASSIGNMENT, sender_id="test", payload=payload)
        return await memory_conductor.bus.request("conductor:agent:shout-1", message, timeout=5)

    answer = await ask({"task": shout.task(Text(text="ask")).model_dump(mode="json")})
    assert answer.message_type is MessageType.TASK_RESULT
    assert answer.payload["result"]["output_data"] == {"text": "ASK"}
    refused = await ask({"task": TaskDefinition(name="bad").model_dump(mode="json")})
    assert refused.message_type is MessageType.ERROR
    assert refused.payload["error_code"] == "TASK_VALIDATION_FAILED"
    assert (await ask({"no": "task"})).payload["error_code"] == "INVALID_PAYLOAD"

    await memory_conductor.bus.publish("conductor:broadcast", STOP)
    assert made.status is AgentStatus.CANCELLED


async def test_a_workflow_runs_over_it(memory_conductor: InMemoryConductor) -> None:
    await memory_conductor.add_agent(shout)
    tasks = [shout.task(Text(text=word), name=word) for word in ("one", "two")]
    missing = TaskDefinition(name="nobody", assigned_to=AgentType.MONITOR)
    engine = WorkflowEngine(memory_conductor, memory_conductor.state)
    state = await engine.run_workflow(WorkflowDefinition(name="words", tasks=[*tasks, missing]))
    assert [state.task_results[task.task_id].output_data for task in tasks] == [
        {"text": "ONE"},
        {"text": "TWO"},
    ]
    assert state.error_log[0]["error_code"] == "NO_AVAILABLE_AGENT"


async def test_disconnected_it_refuses_and_forgets() -> None:
    gate = Gate()
    conductor = InMemoryConductor()
    with pytest.raises(ConductorError) as caught:
        await conductor.dispatch(gate.task("early"))
    assert caught.value.error_code == "NOT_CONNECTED"
    async with conductor:
        made = await conductor.add_agent(gate.agent)
        handle = await conductor.dispatch(gate.task("left"))
        await asyncio.wait_for(gate.busy.wait(), 5)
    assert (await handle.result(5)).status is TaskStatus.SKIPPED
    assert made.status is AgentStatus.CANCELLED
    with pytest.raises(MessageBusError):
        await conductor.bus.publish("conductor:broadcast", STOP)
    with pytest.raises(AgentError) as unknown:
        await conductor.handle(handle.task_id)
    assert unknown.value.error_code == "TASK_NOT_FOUND"
