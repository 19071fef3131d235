"""What a workflow run tells the world while it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from conductor.core.channels import workflow_channel
from conductor.core.enums import MessageType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import StateError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage, FeedbackPayload, TaskResultPayload
from conductor.orchestration.workflow_progress import PROGRESS

if TYPE_CHECKING:
    from conductor.core.models import TaskDefinition, TaskResult
    from conductor.core.state import WorkflowState
    from conductor.orchestration.event_log import EventLog
    from conductor.orchestration.message_bus import MessageBus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkflowEvent:
    """Something that happened in a run.

    `event` is workflow_started, workflow_resumed, phase_started, task_started, task_ended, phase_ended,
    gate_denied, feedback or workflow_ended. One that is `repeated` may have been published before, by an
    engine that then died; every other is new.
    """

    event: str
    workflow_id: str
    status: TaskStatus
    phase: WorkflowPhase | None = None
    task: TaskDefinition | None = None
    result: TaskResult | None = None
    feedback_round: int = 0
    message: str | None = None
    feedback: FeedbackPayload | None = None
    repeated: bool = False

    def payload(self) -> dict[str, Any]:
        """Give it as the payload of a STATUS_UPDATE; what there is not is left out."""
        fields = {
            "event": self.event,
            "workflow_id": self.workflow_id,
            "status": self.status.value,
            "phase": self.phase and self.phase.value,
            "task_id": self.task and self.task.task_id,
            "task_name": self.task and self.task.name,
            "agent_id": self.result and self.result.agent_id,
            "feedback_round": self.feedback_round or None,
            "message": self.message,
            "repeated": self.repeated or None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def kept(self) -> dict[str, Any]:
        """Give it as it is kept with the state until it is published, without task and result."""
        feedback = self.feedback and self.feedback.model_dump(mode="json")
        return self.payload() | ({"feedback": feedback} if feedback else {})

    @classmethod
    def again(cls, kept: Mapping[str, Any]) -> Self:
        """Give what was kept, to be repeated."""
        phase, feedback = kept.get("phase"), kept.get("feedback")
        return cls(
            kept["event"],
            kept["workflow_id"],
            TaskStatus(kept["status"]),
            phase=phase and WorkflowPhase(phase),
            feedback_round=kept.get("feedback_round", 0),
            message=kept.get("message"),
            feedback=feedback and FeedbackPayload.model_validate(feedback),
            repeated=True,
        )


def unannounced(state: WorkflowState) -> list[WorkflowEvent]:
    """Give the events that are true since the last save of a state, and may not have been published."""
    progress = state.metadata.get(PROGRESS)
    kept = progress.get("unannounced") if isinstance(progress, dict) else None
    return [WorkflowEvent.again(event) for event in kept or ()]


OnEvent = Callable[[WorkflowEvent], None]


class Announcer:
    """Publishes on the channel of one workflow and keeps its events; what fails there never fails the run."""

    def __init__(
        self,
        workflow_id: str,
        find_bus: Callable[[], MessageBus | None],
        on_event: OnEvent | None = None,
        log: EventLog | None = None,
    ) -> None:
        self._workflow_id = workflow_id
        self._log = log
        self._find_bus = find_bus
        self._on_event = on_event
        self.failures = 0
        """How many messages could not be published, and events not kept."""

    async def announce(self, event: WorkflowEvent) -> None:
        """Keep and publish an event, with a task's result before it and feedback after it as own messages."""
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("workflow %s: on_event failed at %s", self._workflow_id, event.event)
        await self._keep(event)
        if event.result is not None:
            payload = TaskResultPayload(result=event.result).model_dump(mode="json")
            await self._publish(MessageType.TASK_RESULT, payload)
        await self._publish(MessageType.STATUS_UPDATE, event.payload())
        if event.feedback is not None:
            await self._publish(MessageType.FEEDBACK, event.feedback.model_dump(mode="json"))

    async def _keep(self, event: WorkflowEvent) -> None:
        if self._log is None:
            return
        entry = {"at": utc_now().isoformat(), **event.payload()}
        if event.result is not None:
            error = event.result.metadata.get("error")
            code = error.get("error_code") if isinstance(error, dict) else None
            facts = {"duration_seconds": event.result.duration_seconds, "error_code": code}
            entry |= {name: value for name, value in facts.items() if value is not None}
        try:
            await self._log.append_workflow_event(self._workflow_id, entry)
        except StateError as error:
            self.failures += 1
            logger.warning("workflow %s: an event was not kept: %s", self._workflow_id, error)

    async def command(self, command: str) -> None:
        """Publish a CONTROL message."""
        await self._publish(MessageType.CONTROL, {"command": command, "workflow_id": self._workflow_id})

    async def _publish(self, message_type: MessageType, payload: dict[str, Any]) -> None:
        sender = f"workflow-{self._workflow_id}"
        try:
            bus = self._find_bus()
            if bus is None or not bus.is_connected:
                return
            message = AgentMessage(message_type=message_type, sender_id=sender, payload=payload)
            await bus.publish(workflow_channel(self._workflow_id), message)
        except Exception as error:  # noqa: BLE001 - a run outlives whatever its bus does
            self.failures += 1
            logger.warning("workflow %s: a message was not published: %s", self._workflow_id, error)
