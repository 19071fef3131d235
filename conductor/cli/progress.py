"""What agents report of tasks that run, as a person sees it."""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from typing import Self

from pydantic import ValidationError

from conductor.core.enums import MessageType
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage, StatusUpdatePayload, TaskResultPayload
from conductor.core.models import TaskResult
from conductor.orchestration.message_bus import MessageBus

logger = logging.getLogger(__name__)

STEP = 10
"""Percent between two lines whose texts differ in nothing but numbers."""
LAST_REPORT_LIMIT = 2.0
"""Seconds to wait for reports that were published before the result."""

Show = Callable[[StatusUpdatePayload], None]


class Progress:
    """The progress of one task."""

    def __init__(self) -> None:
        self.percent: float | None = None
        self.text = ""
        """What is known, in a few words; empty before the first report."""
        self._said: tuple[str, float] | None = None

    def take(self, report: StatusUpdatePayload) -> bool:
        """Note a report; tell whether it is worth a line, where every line stays.

        It is with another message, or STEP percent after the line before. "file 17 of 900" after "file 16 of
        900" is not another message.
        """
        if report.progress_percent is None:
            return False
        self.percent = report.progress_percent
        message = " ".join((report.message or "").split())
        self.text = f"{self.percent:.0f} % {message}".rstrip()
        kind = re.sub(r"\d+", "0", message)
        news = self._said is None or self._said[0] != kind or self.percent >= self._said[1] + STEP
        if news:
            self._said = kind, self.percent
        return news


class Listener:
    """Shows what is reported on a channel, `async with` it; belongs to the event loop of the bus."""

    def __init__(self, bus: MessageBus, channel: str, show: Show) -> None:
        self._bus = bus
        self._channel = channel
        self._show = show
        self._awaited = ""
        self._back = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._bus.subscribe(self._channel, self._hear)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ConductorError):
            await self._bus.unsubscribe(self._channel)

    async def announce(self, result: TaskResult, sender_id: str) -> None:
        """Publish a task's result on the channel, and return when all that was reported before it is shown.

        Results come by another way than reports, so those of a short task would often be late.
        """
        message = AgentMessage(
            message_type=MessageType.TASK_RESULT,
            sender_id=sender_id,
            payload=TaskResultPayload(result=result).model_dump(mode="json"),
        )
        self._awaited = message.message_id
        self._back.clear()
        try:
            async with asyncio.timeout(LAST_REPORT_LIMIT):
                await self._bus.publish(self._channel, message)
                await self._back.wait()
        except (ConductorError, TimeoutError) as error:
            logger.info("the last reports on %s may be missing: %s", self._channel, error)

    async def _hear(self, message: AgentMessage) -> None:
        if message.message_id == self._awaited:
            self._back.set()
        if message.message_type is not MessageType.STATUS_UPDATE:
            return
        try:
            self._show(StatusUpdatePayload.model_validate(message.payload))
        except ValidationError:
            logger.info("message %s on %s is no report of progress", message.message_id, self._channel)
