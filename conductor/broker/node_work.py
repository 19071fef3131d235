"""What an agent is given to do: a task, or a message to answer; everything here runs on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.broker.node_errors import Later, Retry, verdict_on
from conductor.broker.node_runner import Reason
from conductor.broker.node_states import note_failure
from conductor.broker.records import Start
from conductor.broker.results import (
    TaskFailed,
    agent_of_node,
    assigned_task_id,
    cancelled,
    error_response,
    failed,
    refused,
    result_without_agent,
    timed_out,
    timeout_response,
)
from conductor.broker.task_letters import Fate
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, MessageBusError
from conductor.core.messages import AgentMessage, TaskResultPayload
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.core.wording import error_text, traceback_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conductor.agents.base import BaseAgent
    from conductor.broker.node_errors import ErrorDesk
    from conductor.broker.node_events import EventDesk
    from conductor.broker.node_states import AgentStates
    from conductor.broker.records import Run, TaskRecords
    from conductor.broker.shared_breaker import SharedBreaker
    from conductor.core.enums import AgentType
    from conductor.core.models import TaskDefinition, TaskResult
    from conductor.orchestration.state_manager import StateManager

logger = logging.getLogger(__name__)

#: Seconds until a second delivery of a run that another node works on is looked at again.
SECOND_LOOK = 5.0

#: What Celery is told: the result, the failure to raise, or when to send it again. None: filed elsewhere.
Outcome = dict[str, Any] | TaskFailed | Retry | Later | None


@dataclass(frozen=True)
class Office:
    """Where work is filed."""

    records: TaskRecords
    manager: StateManager
    states: AgentStates
    events: EventDesk
    errors: ErrorDesk
    breaker: Callable[[AgentType], SharedBreaker]
    """Gives the breaker that the agents of a type share."""
    interruption: Callable[[], Reason | None]
    """Tells why what runs now was interrupted, if it was."""
    metrics: Metrics = NO_METRICS


class Work(ABC):
    """A run of something by an agent."""

    def __init__(self, office: Office, agent: BaseAgent, run: Run) -> None:
        self._office = office
        self._agent = agent
        self._run = run
        self._breaker: SharedBreaker | None = office.breaker(agent.agent_type)

    @abstractmethod
    async def perform(self) -> Outcome:
        """Do it and file its end; CancelledError when it was interrupted."""

    @abstractmethod
    async def interrupted(self, reason: Reason) -> Outcome:
        """File the end of what was interrupted."""

    def _refusal(self, start: Start) -> tuple[DeadLetterReason, AgentError] | None:
        """Tell why the run must not go on now, if so."""
        if start.refused:
            kind = self._agent.agent_type.value
            text = f"The circuit breaker of the {kind} agents is open: too many of their tasks failed."
            return DeadLetterReason.CIRCUIT_OPEN, self._agent_error(text, "CIRCUIT_OPEN")
        if start.lost >= self._office.errors.max_worker_losses:
            text = f"The task was given up: {start.lost} times the process that worked on it died."
            return DeadLetterReason.WORKER_LOST, self._agent_error(text, "TASK_GIVEN_UP")
        return None

    def _count_end(self, outcome: str) -> None:
        self._office.metrics.task_ended(self._agent.agent_type.value, outcome)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Note how long the agent works."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._office.metrics.task_ran(self._agent.agent_type.value, time.monotonic() - began)

    def _agent_error(self, text: str, code: str) -> AgentError:
        return AgentError(text, self._agent.agent_id, self._run.task_id, code)


class TaskWork(Work):
    """A dispatched task."""

    def __init__(self, office: Office, agent: BaseAgent, run: Run, task: TaskDefinition) -> None:
        super().__init__(office, agent, run)
        self._task = task
        self._start = Start()

    async def perform(self) -> Outcome:
        """See `Work.perform`."""
        office, agent = self._office, self._agent
        running = office.states.running(agent, self._task.task_id)
        start, _ = await asyncio.gather(self._begin(), running)
        self._start = start
        if start.elsewhere:
            await office.states.save(agent)
            text = "Task %s came once more while %s works on it: it is looked at again in %g s"
            logger.warning(text, self._task.task_id, start.before, SECOND_LOOK)
            return Later(SECOND_LOOK)
        if start.end is not None:
            await office.states.save(agent)
        lost_by = agent_of_node(start.before)
        if start.before and lost_by != agent.agent_id:
            await office.states.bury(lost_by, self._task.task_id)
        if start.end is not None:
            await self._attend_to_end(start.end, lost_by if start.before else "")
            return None
        if refusal := self._refusal(start):
            return await self._refuse(*refusal)
        if self._run.sent_at is not None and start.tries == 1:
            office.metrics.task_waited(agent.agent_type.value, time.time() - self._run.sent_at)
        with self._timed():
            result = await self._execute()
        reason = office.interruption()
        if reason is not None and result.status is not TaskStatus.COMPLETED:
            # The agent made a failure of its cancellation.
            result = self._end_by(reason)
        return await self._file(result)

    async def _begin(self) -> Start:
        """File the start, unless the run is under way on another node that was sent the task as well.

        A message that somebody had before is for whoever lost it to run again. Another is a second one of the
        run, if the first is being worked on; it is kept until that is over, as nobody can be sure.
        """
        office, alone = self._office, not self._run.redelivered
        start = await office.records.start(self._run, self._breaker, alone=alone)
        if start.elsewhere:
            there = agent_of_node(start.before)
            if there == self._agent.agent_id or not await office.states.works_on(there, self._task.task_id):
                start = await office.records.start(self._run, self._breaker)
        return start

    async def _attend_to_end(self, end: dict[str, Any], lost_by: str) -> None:
        """Do what a process that died left undone at the end of the run."""
        if lost_by:  # it was cancelled while no node had it
            await self._office.manager.save_task_result(cancelled(self._task.task_id, lost_by))
        await self._office.errors.finish(self._run, end)

    async def _refuse(self, reason: DeadLetterReason, error: AgentError) -> Outcome:
        """Put the task aside without running it."""
        office, agent, start = self._office, self._agent, self._start
        verdict = ""
        if reason is DeadLetterReason.WORKER_LOST:
            note_failure(agent, self._task.task_id)
            verdict = "failure"
        result = result_without_agent(
            self._task.task_id, agent.agent_id, TaskStatus.FAILED, error.message, error.error_code
        )
        attempts = start.attempt + start.lost
        fate = Fate(reason, attempts, start.first_failure)
        burying = office.errors.bury(self._run, self._breaker, result, fate, verdict)
        failure, _ = await asyncio.gather(burying, office.states.save(agent))
        return failure

    async def interrupted(self, reason: Reason) -> Outcome:
        """See `Work.interrupted`."""
        result = self._end_by(reason)
        if result.status is TaskStatus.FAILED:
            note_failure(self._agent, self._task.task_id)
        return await self._file(result)

    async def _execute(self) -> TaskResult:
        agent, task_id = self._agent, self._task.task_id
        try:
            return await self._have_it_done()
        except AgentError as error:
            if task_id not in agent.state.failed_tasks:
                note_failure(agent, task_id)
            return refused(agent, task_id, error)

    async def _have_it_done(self) -> TaskResult:
        return await self._agent.execute_task(self._task)

    def _end_by(self, reason: Reason) -> TaskResult:
        agent, task_id = self._agent, self._task.task_id
        if reason is Reason.TIMED_OUT:
            return timed_out(task_id, agent.agent_id, self._task.timeout_seconds)
        if reason is Reason.CANCELLED:
            return cancelled(task_id, agent.agent_id)
        text = "The agent cancelled its own task."
        return refused(agent, task_id, AgentError(text, agent.agent_id, task_id, "TASK_CANCELLED_ITSELF"))

    async def _file(self, result: TaskResult) -> Outcome:
        """Save result and state, then the record, which tells who waits: all in one round trip."""
        office, saving_state = self._office, self._office.states.save(self._agent)
        if result.status is TaskStatus.FAILED:
            failing = office.errors.failed(self._run, self._start, self._breaker, result)
            _, failure = await asyncio.gather(saving_state, failing)
            return failure
        saving = [office.manager.save_task_result(result), saving_state]
        if result.status is TaskStatus.SKIPPED and office.interruption() is Reason.CANCELLED:
            await asyncio.gather(*saving, office.records.forget_probe(self._run, self._breaker))
            self._count_end("cancelled")
            return None  # The parent process files it as REVOKED.
        data = result.model_dump(mode="json")
        *_, filed = await asyncio.gather(*saving, office.records.succeed(self._run, self._breaker, data))
        if filed:
            self._count_end("completed")
        return data


class MessageWork(Work):
    """A request to an agent, perhaps to do a task; who asked is told how it ended."""

    def __init__(
        self,
        office: Office,
        agent: BaseAgent,
        run: Run,
        message: AgentMessage,
        reply_to: str | None,
        seconds: float,
    ) -> None:
        super().__init__(office, agent, run)
        self._message = message
        self._reply_to = reply_to
        self._seconds = seconds
        if assigned_task_id(message) is None:
            self._breaker = None  # A question is no task.

    async def perform(self) -> Outcome:
        """See `Work.perform`."""
        office, agent = self._office, self._agent
        task_id = assigned_task_id(self._message)
        starting = office.states.running(agent, task_id) if task_id else asyncio.sleep(0)
        start, _ = await asyncio.gather(office.records.start(self._run, self._breaker), starting)
        if start.end is not None:
            await asyncio.gather(office.states.save(agent), self._answer_again(start.end))
            return None
        try:
            if refusal := self._refusal(start):
                raise refusal[1]
            with self._timed() if task_id else nullcontext():
                response = await agent.handle_message(self._message)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an agent raises is its answer
            response = self._raised(error)
        if reason := office.interruption():
            return await self.interrupted(reason)
        return await self._file(self._as_error(response), result_in(response))

    async def interrupted(self, reason: Reason) -> Outcome:
        """See `Work.interrupted`."""
        agent_id, task_id = self._agent.agent_id, assigned_task_id(self._message)
        if reason is Reason.CANCELLED:
            forgetting = self._office.records.forget_probe(self._run, self._breaker)
            await asyncio.gather(self._office.states.save(self._agent), forgetting)
            if task_id:
                self._count_end("cancelled")
            return None  # The parent process files it as REVOKED.
        if reason is Reason.TIMED_OUT:
            response = timeout_response(self._message, agent_id, self._seconds)
        else:
            response = self._error("TASK_CANCELLED_ITSELF", "The agent cancelled its own task.", None)
        if task_id is None:
            return await self._file(response, None)
        note_failure(self._agent, task_id)
        return await self._file(response, timed_out(task_id, agent_id, self._seconds))

    async def _file(self, response: AgentMessage, result: TaskResult | None) -> Outcome:
        """Save all, then answer: who has the answer finds the rest. A lost answer is in the record."""
        office = self._office
        saving: list[Any] = [office.states.save(self._agent)]
        if result is not None:
            saving.append(office.manager.save_task_result(result))
        data = response.model_dump(mode="json")
        outcome: Outcome = data
        if response.message_type is MessageType.ERROR:
            payload = response.payload
            outcome = failed(str(payload.get("error_message")), data, payload.get("traceback"))
            saving.append(office.records.fail(self._run, self._breaker, outcome, verdict_on(payload)))
        else:
            saving.append(office.records.succeed(self._run, self._breaker, data))
        *_, filed = await asyncio.gather(*saving)
        if filed and assigned_task_id(self._message):
            self._count_end(
                "failed" if isinstance(outcome, TaskFailed) or _is_failed(result) else "completed"
            )
        try:
            await office.events.reply(response, self._reply_to)
        except MessageBusError as error:
            logger.warning("The answer to %s was not sent: %s", self._run.task_id, error)
        return outcome

    async def _answer_again(self, end: dict[str, Any]) -> None:
        """Send the stored answer of a request that was delivered once more after it had been answered."""
        stored = end.get("result")
        if end["status"] == states.FAILURE and isinstance(stored, dict):
            arguments = stored.get("exc_message") or []
            stored = arguments[1] if len(arguments) == 2 else None
        if isinstance(stored, dict) and "message_type" in stored:
            await self._office.events.reply(AgentMessage.model_validate(stored), self._reply_to)

    def _as_error(self, response: AgentMessage | None) -> AgentMessage:
        """Make an ERROR of no answer at all, and of a result that stands for an exception."""
        if response is None:
            kind = self._message.message_type.value
            text = f"Agent {self._agent.agent_id} has no answer to a {kind} message."
            return self._error("NO_RESPONSE", text, None)
        result = result_in(response)
        error = result.metadata.get("error") if result else None
        if result is None or result.status is not TaskStatus.FAILED or not isinstance(error, dict):
            return response
        code = str(error.get("error_code") or "UNKNOWN_ERROR")
        return self._error(code, result.error_message or "", error.get("traceback"))

    def _raised(self, error: BaseException) -> AgentMessage:
        code = str(getattr(error, "error_code", "UNKNOWN_ERROR"))
        return self._error(code, error_text(error), traceback_text(error))

    def _error(self, code: str, text: str, traceback: str | None) -> AgentMessage:
        task_id = assigned_task_id(self._message)
        return error_response(self._message, self._agent.agent_id, code, text, traceback, task_id)


def _is_failed(result: TaskResult | None) -> bool:
    return result is not None and result.status is TaskStatus.FAILED


def result_in(response: AgentMessage | None) -> TaskResult | None:
    """Give the result in an agent's answer, if there is one."""
    if response is None or response.message_type is not MessageType.TASK_RESULT:
        return None
    return TaskResultPayload.model_validate(response.payload).result
