"""The events that reach the agents of a node, at once and also while they are busy."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from conductor.broker.node_intake import is_work
from conductor.core.channels import BROADCAST, RESPONSE, agent_channel, phase_channel
from conductor.core.enums import MessageType
from conductor.core.exceptions import MessageBusError
from conductor.core.log_ids import bound_ids
from conductor.core.message_size import TOO_LARGE
from conductor.core.messages import ErrorPayload, StatusUpdatePayload
from conductor.core.tracing import find_tracing
from conductor.orchestration.message_spans import processing
from conductor.orchestration.workflow_engine import PHASE_AGENT_TYPES

if TYPE_CHECKING:
    from conductor.agents.base import BaseAgent
    from conductor.broker.kombu_bus import KombuMessageBus
    from conductor.core.messages import AgentMessage

logger = logging.getLogger(__name__)

AfterEvent = Callable[["BaseAgent"], Awaitable[None]]


class EventDesk:
    """Gives agents the messages that are not work; lives on the event loop of a node's child."""

    def __init__(self, bus: KombuMessageBus, after: AfterEvent) -> None:
        self._bus = bus
        self._after = after

    async def attend(self, agent: BaseAgent) -> None:
        """Subscribe an agent to its own channel, to broadcasts and to its phases."""
        phases = [phase for phase, types in PHASE_AGENT_TYPES.items() if agent.agent_type in types]
        own = agent_channel(agent.agent_id)
        await self._bus.listen(own, partial(self._on_own, agent))
        for channel in (BROADCAST, *(phase_channel(phase.value) for phase in phases)):
            await self._bus.subscribe(channel, partial(self._on_event, agent))

    async def reply(self, response: AgentMessage, inbox: str | None) -> None:
        """Send an answer to who asked, or to whoever listens; if it is too large, that it is."""
        try:
            await self._send(response, inbox)
        except MessageBusError as error:
            if error.error_code != TOO_LARGE:
                raise
            logger.warning("The answer to %s is not sent: %s", response.correlation_id, error)
            payload = ErrorPayload(
                error_code=error.error_code, error_message=error.message, agent_id=response.sender_id
            )
            changes = {"message_type": MessageType.ERROR, "payload": payload.model_dump(mode="json")}
            await self._send(response.model_copy(update=changes), inbox)

    async def _send(self, response: AgentMessage, inbox: str | None) -> None:
        if inbox is None:
            await self._bus.publish(RESPONSE, response)
        else:
            await self._bus.reply(inbox, response)

    async def _on_own(self, agent: BaseAgent, message: AgentMessage) -> None:
        asker = self._bus.asker_of(message)
        if is_work(message, wants_answer=asker is not None):
            return  # The parent process makes a task of it.
        with processing(find_tracing(), self._bus.system, agent_channel(agent.agent_id), message):
            response = await self._handle(agent, message)
            if response is None and asker is not None:
                status = _status_of(agent)
                response = message.create_response(agent.agent_id, MessageType.STATUS_UPDATE, status)
            if response is not None:
                await self.reply(response, asker)

    async def _on_event(self, agent: BaseAgent, message: AgentMessage) -> None:
        response = await self._handle(agent, message)
        if response is not None:
            await self.reply(response, self._bus.asker_of(message))

    async def _handle(self, agent: BaseAgent, message: AgentMessage) -> AgentMessage | None:
        before = agent.status, agent.state.current_task_id
        try:
            with bound_ids({"agent_id": agent.agent_id}):
                return await agent.handle_message(message)
        finally:
            if (agent.status, agent.state.current_task_id) != before:
                await self._after(agent)


def _status_of(agent: BaseAgent) -> dict[str, object]:
    state = agent.state
    return StatusUpdatePayload(
        agent_id=agent.agent_id, status=state.status, current_task_id=state.current_task_id
    ).model_dump(mode="json")
