"""Reports of how far a task is, on the bus and never too many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import ValidationError

from conductor.core.channels import task_channel, workflow_channel
from conductor.core.enums import AgentStatus, MessageType
from conductor.core.exceptions import ConductorError, MessageBusError
from conductor.core.messages import AgentMessage, StatusUpdatePayload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor.agents.services import Bus
    from conductor.agents.task_log import TaskLog
    from conductor.core.models import TaskDefinition

#: Seconds between two reports of one task.
INTERVAL = 0.1
#: Seconds that the end of a task waits for its last report.
LAST_REPORT_LIMIT = 1.0


class ProgressReports:
    """The reports of one task's run; belongs to its event loop.

    The latest is published at once, or INTERVAL after the one before it; those between are left out. A bus
    that fails, or is slow, does not touch the task: it is logged.
    """

    def __init__(self, bus: Bus | None, agent_id: str, task: TaskDefinition, log: TaskLog) -> None:
        self._bus = bus
        self._agent_id = agent_id
        self._task = task
        self._log = log
        self._channels = list(_channels(task, log))
        self._waiting: StatusUpdatePayload | None = None
        self._sender: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def report(self, percent: float, message: str | None) -> None:
        """Note how far the task is; what comes after its end is dropped.

        ConductorError, code INVALID_PROGRESS, for a `percent` outside 0..100 and a `message` that is no text.
        """
        report = self._checked(percent, message)
        if self._bus is None or self._ended.is_set():
            return
        self._waiting = report
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(self._bus))
        # A loop that does nothing else would keep the reports from being sent.
        await asyncio.sleep(0)

    async def finish(self) -> None:
        """Publish the last report without delay, and take no further ones."""
        self._ended.set()
        if self._sender is None:
            return
        _, late = await asyncio.wait({self._sender}, timeout=LAST_REPORT_LIMIT)
        if late:
            self._sender.cancel()
            self._log.warning("the last report of progress was given up after %g s", LAST_REPORT_LIMIT)

    async def _send(self, bus: Bus) -> None:
        while (report := self._waiting) is not None:
            self._waiting = None
            message = AgentMessage(
                message_type=MessageType.STATUS_UPDATE,
                sender_id=self._agent_id,
                payload=report.model_dump(mode="json"),
            )
            await asyncio.gather(*(self._publish(bus, channel, message) for channel in self._channels))
            try:
                await asyncio.wait_for(self._ended.wait(), INTERVAL)
            except TimeoutError:
                continue

    async def _publish(self, bus: Bus, channel: str, message: AgentMessage) -> None:
        try:
            await bus.publish(channel, message)
        except Exception as error:  # noqa: BLE001 - whatever a bus raises is not the task's
            unforeseen = not isinstance(error, ConductorError)
            self._log.warning("progress was not published on %s: %s", channel, error, exc_info=unforeseen)

    def _checked(self, percent: float, message: str | None) -> StatusUpdatePayload:
        if percent is None:
            raise _invalid("percent", percent, "it must be a number from 0 to 100")
        try:
            return StatusUpdatePayload(
                agent_id=self._agent_id,
                status=AgentStatus.RUNNING,
                current_task_id=self._task.task_id,
                progress_percent=percent,
                message=message,
            )
        except ValidationError as error:
            if error.errors()[0]["loc"] == ("message",):
                raise _invalid("message", message, "it must be text") from error
            raise _invalid("percent", percent, "it must be a number from 0 to 100") from error


def _channels(task: TaskDefinition, log: TaskLog) -> Iterator[str]:
    """Name those of the task and of its workflow, as far as their ids can be in the name of a channel."""
    for build, given in ((task_channel, task.task_id), (workflow_channel, task.metadata.get("workflow_id"))):
        if given is None:
            continue
        try:
            yield build(given)
        except MessageBusError as error:
            log.warning("progress is not published there: %s", error)


def _invalid(field: str, value: object, problem: str) -> ConductorError:
    return ConductorError(
        f"Progress cannot be reported with {field} {value!r}: {problem}.",
        "INVALID_PROGRESS",
        {"field": field, "value": repr(value)},
    )
