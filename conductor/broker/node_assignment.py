"""Tasks that agents are given by message, with nobody who waits for the answer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.broker.node_work import TaskWork, result_in
from conductor.broker.results import TaskFailed, result_in_failure, task_response
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, MessageBusError
from conductor.core.models import TaskResult
from conductor.core.wording import error_text

if TYPE_CHECKING:
    from conductor.agents.base import BaseAgent
    from conductor.broker.node_runner import Reason
    from conductor.broker.node_work import Office, Outcome
    from conductor.broker.records import Run
    from conductor.core.messages import AgentMessage
    from conductor.core.models import TaskDefinition

logger = logging.getLogger(__name__)


class AssignmentWork(TaskWork):
    """A task in a TASK_ASSIGNMENT: as one that was dispatched, and `conductor:response` is told its end."""

    def __init__(
        self, office: Office, agent: BaseAgent, run: Run, message: AgentMessage, task: TaskDefinition
    ) -> None:
        super().__init__(office, agent, run, task)
        self._message = message
        self._response: AgentMessage | None = None

    async def perform(self) -> Outcome:
        """See `Work.perform`."""
        return await self._told(await super().perform())

    async def interrupted(self, reason: Reason) -> Outcome:
        """See `Work.interrupted`."""
        return await self._told(await super().interrupted(reason))

    async def _have_it_done(self) -> TaskResult:
        """Have the agent handle the message, as it may do that in a way of its own."""
        try:
            self._response = response = await self._agent.handle_message(self._message)
            result = result_in(response)
        except AgentError:
            raise
        except (Exception, SystemExit) as error:
            code = str(getattr(error, "error_code", "UNKNOWN_ERROR"))
            raise self._agent_error(error_text(error), code) from error
        if result is not None:
            return result
        if response is None:
            text = (
                f"Agent {self._agent.agent_id} has no answer to a {self._message.message_type.value} message."
            )
            raise self._agent_error(text, "NO_RESPONSE")
        if response.message_type is MessageType.ERROR:
            code = str(response.payload.get("error_code") or "UNKNOWN_ERROR")
            raise self._agent_error(str(response.payload.get("error_message")), code)
        return TaskResult(
            task_id=self._task.task_id,
            agent_id=self._agent.agent_id,
            status=TaskStatus.COMPLETED,
            output_data=response.payload,
        )

    async def _attend_to_end(self, end: dict[str, Any], lost_by: str) -> None:
        await super()._attend_to_end(end, lost_by)
        if end["status"] == states.SUCCESS:
            await self._announce(TaskResult.model_validate(end["result"]))
        elif end["status"] == states.FAILURE:
            await self._announce(result_in_failure(self._task.task_id, end))

    async def _told(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, TaskFailed):
            await self._announce(TaskResult.model_validate(outcome.outcome))
        elif isinstance(outcome, dict):
            await self._announce(TaskResult.model_validate(outcome))
        return outcome

    async def _announce(self, result: TaskResult) -> None:
        try:
            response = task_response(self._message, result.agent_id, result, self._response)
            await self._office.events.reply(response, None)
        except MessageBusError as error:
            logger.warning("The end of task %s was not announced: %s", result.task_id, error)
