"""Events reach the agents on nodes, also while they are busy."""

import asyncio
from pathlib import Path

from conductor.client import Conductor
from conductor.core.channels import BROADCAST, agent_channel, phase_channel
from conductor.core.enums import AgentStatus, MessageType, TaskStatus, WorkflowPhase
from conductor.core.messages import AgentMessage, StatusUpdatePayload
from tests.broker.nodes.conftest import task
from tests.support.agents import notes
from tests.support.nodes import AgentNode
from tests.support.waiting import wait_until


def message(kind: MessageType, **payload: object) -> AgentMessage:
    return AgentMessage(message_type=kind, sender_id="a-test", payload=payload)


async def test_control_broadcast_and_phase_reach_every_agent_also_a_busy_one(
    conductor: Conductor, agent: AgentNode, other: AgentNode, devops: AgentNode, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    busy = await conductor.dispatch(task("wait_for_file", file=tmp_path / "go"), agent.agent_id)
    await wait_until(lambda: busy.status() is TaskStatus.IN_PROGRESS)
    control = message(MessageType.CONTROL, command="look", log=str(log))
    broadcast = message(MessageType.STATUS_UPDATE, log=str(log))
    phase = message(MessageType.FEEDBACK, log=str(log))
    await asyncio.gather(
        conductor.bus.publish(agent_channel(agent.agent_id), control),
        conductor.bus.publish(BROADCAST, broadcast),
        conductor.bus.publish(phase_channel(WorkflowPhase.DEVELOPMENT.value), phase),
    )
    expected = {
        (control.message_id, agent.agent_id),
        *((broadcast.message_id, node.agent_id) for node in (agent, other, devops)),
        *((phase.message_id, node.agent_id) for node in (agent, other)),
    }
    await wait_until(lambda: {(note["message"], note["agent"]) for note in notes(log)} >= expected)
    assert busy.status() is TaskStatus.IN_PROGRESS
    (tmp_path / "go").touch()
    await busy.result(20)
    # Nodes of other tests may be there, and hear what everybody hears.
    ours = {node.agent_id for node in (agent, other, devops)}
    assert len([note for note in notes(log) if note["agent"] in ours]) == len(expected)


async def test_a_control_request_is_answered_at_once_by_a_busy_agent(
    conductor: Conductor, agent: AgentNode, tmp_path: Path
) -> None:
    order = task("wait_for_file", file=tmp_path / "go")
    busy = await conductor.dispatch(order, agent.agent_id)
    await wait_until(lambda: busy.status() is TaskStatus.IN_PROGRESS)
    asked = message(MessageType.CONTROL, command="how are you")
    answer = await conductor.bus.request(agent_channel(agent.agent_id), asked, 20)
    status = StatusUpdatePayload.model_validate(answer.payload)
    assert (status.status, status.current_task_id) == (AgentStatus.RUNNING, order.task_id)
    (tmp_path / "go").touch()
    await busy.result(20)


async def test_an_assignment_that_nobody_waits_for_is_done_as_well(
    conductor: Conductor, agent: AgentNode
) -> None:
    order = task(say="hello")
    payload = {"task": order.model_dump(mode="json")}
    await conductor.bus.publish(
        agent_channel(agent.agent_id), message(MessageType.TASK_ASSIGNMENT, **payload)
    )
    result = await wait_until(lambda: conductor.state.get_task_result(order.task_id))
    assert result.output_data["echo"] == "hello"
