"""What becomes of tasks that fail on nodes: another try, a word to somebody, and a dead letter."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conductor.broker.results import TIMED_OUT, TaskFailed, failed, result_in_failure, result_without_agent
from conductor.broker.task_letters import Fate, task_letter
from conductor.core.channels import ERRORS
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.enums import MessageType, Priority, TaskStatus
from conductor.core.exceptions import ConductorError, StateError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage, ErrorPayload
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.core.tracing import add_event
from conductor.orchestration.error_handler import ErrorAction, decide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.broker.dead_letter_sender import DeadLetterSender
    from conductor.broker.records import Run, Start, TaskRecords
    from conductor.broker.shared_breaker import SharedBreaker
    from conductor.core.config import ErrorsConfig
    from conductor.core.dead_letters import DeadLetter
    from conductor.core.models import TaskResult
    from conductor.orchestration.message_bus import MessageBus
    from conductor.orchestration.state_manager import StateManager

logger = logging.getLogger(__name__)

#: Failures that are the task's fault: they say nothing of the agents' health.
INNOCENT = frozenset({"TASK_VALIDATION_FAILED", "INVALID_TASK", "TASK_CANCELLED_ITSELF"})


def verdict_on(error: Mapping[str, Any]) -> str:
    """Give what the breaker is to make of an error: nothing of one that the task is to blame for."""
    return "forget" if error.get("error_code") in INNOCENT | {"CIRCUIT_OPEN"} else "failure"


@dataclass(frozen=True)
class Retry:
    """The task is to be sent again by Celery, after so many seconds."""

    seconds: float
    failure: TaskFailed


@dataclass(frozen=True)
class Later:
    """The message is to be sent again by Celery, after so many seconds; nothing was done."""

    seconds: float


class ErrorDesk:
    """Files failed tasks; lives on one event loop.

    A failure and its dead letter are one: the failure is filed first, so that nobody runs the task again,
    then the letter goes into its queue, then the error is escalated, and only then is told who waits. Whoever
    finds a failure that was not told, because a process died in between, does what is left.
    """

    def __init__(
        self,
        records: TaskRecords,
        manager: StateManager,
        letters: DeadLetterSender,
        config: ErrorsConfig,
        bus: MessageBus | None = None,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._metrics = metrics
        self._records = records
        self._manager = manager
        self._letters = letters
        self._config = config
        self._bus = bus

    @property
    def max_worker_losses(self) -> int:
        """How often a task may be lost with its process."""
        return self._config.max_worker_losses

    async def failed(
        self, run: Run, start: Start, breaker: SharedBreaker | None, result: TaskResult
    ) -> TaskFailed | Retry:
        """Decide about a task that an agent failed at, as ErrorHandler does, and do it."""
        error = result.metadata.get("error")
        if not isinstance(error, dict):
            # The agent's own word: it works, and trying again would not change its mind.
            return await self.bury(
                run, breaker, result, self._fate(DeadLetterReason.REJECTED, start), "success"
            )
        code = str(error.get("error_code") or "UNKNOWN_ERROR")
        verdict = verdict_on(error)
        action = decide(self._config.retry, code, start.attempt)
        if action is ErrorAction.RETRY:
            return await self._retry(run, start, breaker, result)
        if action is ErrorAction.DEAD_LETTER:
            fate = self._fate(DeadLetterReason.RETRIES_EXHAUSTED, start)
        elif code == TIMED_OUT:
            fate = self._fate(DeadLetterReason.TIME_LIMIT, start)
        else:
            fate = self._fate(DeadLetterReason.REJECTED, start, escalated=True)
        return await self.bury(run, breaker, result, fate, verdict)

    async def bury(
        self,
        run: Run,
        breaker: SharedBreaker | None,
        result: TaskResult,
        fate: Fate,
        verdict: str = "failure",
    ) -> TaskFailed:
        """File a FAILED task with its dead letter; `verdict` is for the breaker.

        StateError, and MessageBusError, code BROKER_UNAVAILABLE: the letter is missing yet.
        """
        failure = _failure(result)
        filed = await self._records.fail(run, breaker, failure, verdict, fate.mark())
        if filed:
            self._metrics.task_ended(_type_of(breaker), "failed")
            await self._manager.save_task_result(result)
            await self._finish(run, result, fate)
        elif end := await self._records.untold(run):
            await self.finish(run, end)
        return failure

    async def finish(self, run: Run, end: dict[str, Any]) -> None:
        """Send the dead letter of a failure that was filed by a process which died before it did."""
        if mark := end.get("letter"):
            result = result_in_failure(run.task_id, end)
            await self._manager.save_task_result(result)
            await self._finish(run, result, Fate.read(mark))

    async def put_aside(self, run: Run, result: TaskResult, fate: Fate) -> None:
        """Send only the dead letter, of what has no record."""
        await asyncio.to_thread(self._letters.send, task_letter(run.original(), result, fate))

    async def keep(self, run: Run, agent_id: str, text: str, code: str, fate: Fate) -> None:
        """Make a dead letter of what nobody ran; its failure is filed if it names a task.

        It gets one each time it comes, for it may have been replayed as it was. StateError, and
        MessageBusError, code BROKER_UNAVAILABLE.
        """
        result = result_without_agent(run.task_id or fate.letter_id, agent_id, TaskStatus.FAILED, text, code)
        if not run.task_id:
            await self.put_aside(run, result, fate)
            return
        if await self._records.fail(run, None, _failure(result), letter=fate.mark()):
            self._metrics.task_ended(_type_of(None), "failed")
            await self._manager.save_task_result(result)
        elif end := await self._records.untold(run):
            await self.finish(run, end)
            return
        await self._finish(run, result, fate)

    async def _with_type(self, letter: DeadLetter) -> DeadLetter:
        """Complete the letter of a task for an agent by its id, which does not say of which type that is."""
        if letter.agent_type is not None or letter.agent_id is None:
            return letter
        try:
            agent = await self._manager.get_agent_state(letter.agent_id)
        except StateError:
            # What is damaged there must not keep the letter from its queue.
            logger.warning("Of which type agent %s is cannot be read", letter.agent_id, exc_info=True)
            return letter
        return letter.model_copy(update={"agent_type": agent.agent_type.value}) if agent else letter

    async def _finish(self, run: Run, result: TaskResult, fate: Fate) -> None:
        letter = await self._with_type(task_letter(run.original(), result, fate))
        add_event(
            "conductor.dead_letter",
            {"conductor.dead_letter.id": fate.letter_id, "conductor.dead_letter.reason": fate.reason.value},
        )
        await asyncio.to_thread(self._letters.send, letter)
        if fate.escalated:
            await self._escalate(run, result)
        await self._records.tell(run)

    async def _retry(
        self, run: Run, start: Start, breaker: SharedBreaker | None, result: TaskResult
    ) -> TaskFailed | Retry:
        failure = _failure(result)
        first = start.first_failure or utc_now().isoformat()
        if not await self._records.retry(run, breaker, failure, start, first):
            return failure
        self._metrics.task_retried(_type_of(breaker), failure.error_code)
        seconds = self._config.retry.calculate_delay(start.attempt)
        add_event("conductor.retry", {"conductor.retry.delay_seconds": seconds})
        logger.info("Task %s is tried again in %.2f s: %s", run.task_id, seconds, failure)
        return Retry(seconds, failure)

    async def _escalate(self, run: Run, result: TaskResult) -> None:
        """Publish the error on `conductor:errors`; there is the dead letter, so a failure is only logged."""
        if self._bus is None:
            return
        error = result.metadata.get("error") or {}
        payload = ErrorPayload(
            error_code=str(error.get("error_code") or "UNKNOWN_ERROR"),
            error_message=result.error_message or "",
            agent_id=result.agent_id,
            task_id=result.task_id,
            traceback=error.get("traceback"),
        )
        message = AgentMessage(
            message_type=MessageType.ERROR,
            sender_id=result.agent_id,
            payload=payload.model_dump(mode="json"),
            priority=Priority.CRITICAL,
            metadata={"queue": run.queue, "node": run.node},
        )
        try:
            await self._bus.publish(ERRORS, message)
        except ConductorError:
            logger.exception("The error of task %s was not escalated", run.task_id)

    def _fate(self, reason: DeadLetterReason, start: Start, *, escalated: bool = False) -> Fate:
        return Fate(reason, start.tries, start.first_failure, escalated)


def _type_of(breaker: SharedBreaker | None) -> str:
    """Name the type of agents whose breaker it is; nobody knows whose a task was that none of them began."""
    return breaker.name if breaker is not None else "unknown"


def _failure(result: TaskResult) -> TaskFailed:
    error = result.metadata.get("error")
    traceback = error.get("traceback") if isinstance(error, dict) else None
    return failed(result.error_message or "The task failed.", result.model_dump(mode="json"), traceback)
