"""What a client does with nodes."""

import asyncio
import uuid
from pathlib import Path

from conductor.broker.kombu_bus import configured_bus
from conductor.client import Conductor
from conductor.core.channels import DLQ, agent_channel, task_channel
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition, WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.support.agents import notes
from tests.support.cli import LIMIT
from tests.support.nodes import AgentNode
from tests.support.roles import (
    CLIENT,
    SIGNING,
    Left,
    Nodes,
    Place,
    order,
    result_of,
)
from tests.support.waiting import wait_until

POLICIES = [
    "agent_availability",
    {"max_concurrent_tasks": {"max_tasks": 50}},
    {"agent_type_concurrency": {"limits": {"devops": 2}}},
    {"rate_limit": {"max_tasks": 1000, "period_seconds": 60}},
    {"budget": {"limit": 1000}},
]


async def work_of_client(place: Place, nodes: Nodes) -> Left:
    """Have nodes do all that they can: results, retries, dead letters, a killed child, progress, control."""
    config = place.config(CLIENT, policies=POLICIES, signing=SIGNING)
    # Agents that are gone, and one that was saved where nothing expires.
    place.observed.admin.zadd("conductor:index:agent", {"gone": 0})
    place.observed.admin.hset("conductor:agent:old", mapping={"agent_id": '"old"'})
    place.observed.admin.zadd("conductor:expiring:agent", {"old": 0})
    async with Conductor(config) as conductor:
        log = place.directory / "log"
        done = await result_of(conductor, order("echo", say="hello"))
        assert done.output_data["echo"] == "hello"
        assert await (await conductor.handle(done.task_id)).result(LIMIT) == done
        await _retried(conductor, log)
        dead = await _dead(conductor, log)
        await _progress(conductor, nodes.measuring)
        await _messages(conductor, nodes.obedient)
        await _refused(conductor, place, nodes.obedient)
        await _cancelled(conductor, nodes.obedient, log)
        await _taken_over(conductor, place, nodes)
        workflow = await _workflow(conductor)
        await _reconnected(conductor, place, nodes.obedient)
        await _groups(conductor)
    config = place.config(CLIENT, policies=POLICIES, signing=SIGNING, expires=3600)
    async with Conductor(config) as conductor:
        # One that was saved where nothing expires.
        place.observed.admin.zadd("conductor:expiring:workflow", {workflow: 0})
        forgotten = await _workflow(conductor)
        state = await conductor.state.get_workflow_state(forgotten)
        assert state is not None
        state.task_results.clear()
        await conductor.state.save_workflow_state(state)
        assert forgotten in [state.workflow_id for state in await conductor.state.list_workflow_states()]
        assert await conductor.state.delete_workflow_state(forgotten)
        assert await conductor.state.list_task_results(limit=1)
    return Left(nodes.obedient.agent_id, done.task_id, workflow, dead)


async def _retried(conductor: Conductor, log: Path) -> None:
    done = await result_of(conductor, order("fail_with", log=str(log), code="TRANSIENT_ERROR", times=1))
    assert done.output_data == {"attempts": 2}


async def _dead(conductor: Conductor, log: Path) -> list[str]:
    """Fail, open the breaker, which closes again, lose the process, and write to an agent there is not."""
    tasks = [order("fail"), order("die", log=str(log)), order("fail")]
    for task in tasks:
        assert (await result_of(conductor, task)).status is TaskStatus.FAILED
    nobody = order("echo")
    assert (await result_of(conductor, nobody, f"nobody-{uuid.uuid4().hex}")).status is TaskStatus.FAILED

    async def works() -> bool:
        return (await result_of(conductor, order("echo"))).status is TaskStatus.COMPLETED

    await wait_until(works, timeout=LIMIT, interval=0.3)
    return [task.task_id for task in (*tasks, nobody)]


async def _progress(conductor: Conductor, node: AgentNode) -> None:
    task = TaskDefinition(name="t", input_data={"text": "hello"})
    heard: list[AgentMessage] = []

    async def hear(message: AgentMessage) -> None:
        heard.append(message)

    await conductor.bus.subscribe(task_channel(task.task_id), hear)
    assert (await result_of(conductor, task, node.agent_id)).output_data == {"length": 5}
    await wait_until(lambda: len(heard) >= 2, timeout=LIMIT)


async def _messages(conductor: Conductor, node: AgentNode) -> None:
    channel = agent_channel(node.agent_id)
    question = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="me", payload={"do": "echo", "say": 1}
    )
    answer = await conductor.bus.request(channel, question, LIMIT)
    assert answer.payload["echo"] == 1
    event = AgentMessage(message_type=MessageType.FEEDBACK, sender_id="me", payload={"log": None})
    await conductor.bus.publish(channel, event)

    async with configured_bus(conductor.config, conductor.addresses) as other:

        async def answer_it(message: AgentMessage) -> None:
            answer = message.create_response("other", MessageType.FEEDBACK, {})
            await other.publish("conductor:response", answer)

        await other.subscribe("conductor:phase:*", answer_it)
        answered = AgentMessage(message_type=MessageType.FEEDBACK, sender_id="me", payload={})
        await conductor.bus.request("conductor:phase:x", answered, LIMIT)
        await other.unsubscribe("conductor:phase:*")


async def _refused(conductor: Conductor, place: Place, node: AgentNode) -> None:
    """Have what is not signed refused, by a node and here."""
    heard: list[object] = []

    async def hear(message: AgentMessage) -> None:
        heard.append(message.metadata["dead_letter"]["channel"])

    async def never(message: AgentMessage) -> None:
        raise AssertionError(message)

    await conductor.bus.subscribe(DLQ, hear)
    await conductor.bus.subscribe("news", never)
    async with configured_bus(place.config(CLIENT), conductor.addresses) as stranger:
        for channel in ("news", agent_channel(node.agent_id)):
            await stranger.publish(
                channel, AgentMessage(message_type=MessageType.FEEDBACK, sender_id="stranger")
            )
            await wait_until(lambda channel=channel: channel in heard, timeout=LIMIT)
    await conductor.bus.unsubscribe(DLQ)
    await conductor.bus.unsubscribe("news")


async def _cancelled(conductor: Conductor, node: AgentNode, log: Path) -> None:
    handle = await conductor.dispatch(order("sleep", seconds=600, log=str(log)), node.agent_id)
    await wait_until(lambda: any(n.get("task") == handle.task_id for n in notes(log)), timeout=LIMIT)
    waiting = await conductor.dispatch(order("echo"), wait=60)
    for each in (waiting, handle):
        await each.cancel()
        assert (await each.result(LIMIT)).status is not TaskStatus.COMPLETED
    watch = conductor.state.watch_agent_states()
    async with watch:
        await asyncio.wait_for(anext(watch), LIMIT)


async def _taken_over(conductor: Conductor, place: Place, nodes: Nodes) -> None:
    """Two nodes work, and one of them is lost."""
    lost, file, log = (
        await asyncio.to_thread(nodes.more),
        place.directory / "go-on",
        place.directory / "taken",
    )
    orders = [order("wait_for_file", file=str(file), log=str(log)) for _ in range(2)]
    handles = [await conductor.dispatch(task, wait=60) for task in orders]
    await wait_until(lambda: {note["agent"] for note in notes(log)} >= {lost.agent_id}, timeout=LIMIT)
    lost.kill("SIGKILL", reload_container=False)
    file.touch()
    for handle in handles:
        assert (await handle.result(LIMIT)).agent_id == nodes.obedient.agent_id


async def _reconnected(conductor: Conductor, place: Place, node: AgentNode) -> None:
    """Lose all connections to Redis while a task is waited for."""
    file = place.directory / "reconnected"
    handle = await conductor.dispatch(order("wait_for_file", file=str(file)), node.agent_id, wait=60)
    place.observed.admin.execute_command("CLIENT", "KILL", "USER", CLIENT)
    file.touch()
    assert (await handle.result(LIMIT)).status is TaskStatus.COMPLETED


async def _workflow(conductor: Conductor) -> str:
    tasks = [order("echo"), order("echo")]
    for task in tasks:
        task.metadata["cost"] = 1
    definition = WorkflowDefinition(name="a release", tasks=tasks)
    engine = WorkflowEngine(conductor, conductor.state)
    state = await engine.run_workflow(definition)
    assert state.completed_task_count == 2
    return definition.workflow_id


async def _groups(conductor: Conductor) -> None:
    """Have a group try again, give up, hear of a node, and hold a message when its member leaves."""
    heard: list[str] = []

    async def fail_first(message: AgentMessage) -> None:
        heard.append(message.message_id)
        if len(heard) == 1:
            raise ConductorError("not now", "TRANSIENT_ERROR")
        if len(heard) == 2:
            raise ConductorError("never", "NEVER")

    channel = f"work:{uuid.uuid4().hex}"
    await conductor.bus.subscribe(channel, fail_first, "old")
    await conductor.bus.delete_group(channel, "old")
    await conductor.bus.subscribe(channel, fail_first, "team", deduplicate=60)
    for _ in range(2):
        event = AgentMessage(message_type=MessageType.FEEDBACK, sender_id="me")
        await conductor.bus.publish(channel, event)
    await wait_until(lambda: len(heard) >= 3, timeout=LIMIT)
    await conductor.bus.unsubscribe(channel)
    begun = asyncio.Event()

    async def never_ends(message: AgentMessage) -> None:
        begun.set()
        await asyncio.Event().wait()

    await conductor.bus.subscribe("conductor:errors", never_ends, "alarms")
    assert (await result_of(conductor, order("fail"))).status is TaskStatus.FAILED
    await asyncio.wait_for(begun.wait(), LIMIT)
