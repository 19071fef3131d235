"""What every agent does, whatever its work is."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentStatus, AgentType, MessageType, Priority, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import AgentMessage, TaskAssignmentPayload, TaskResultPayload
from conductor.core.models import TaskDefinition, TaskResult

Work = Callable[["Worker", TaskDefinition], Awaitable[TaskResult]]


async def succeed(agent: "Worker", task: TaskDefinition) -> TaskResult:
    return agent._create_result(task.task_id, TaskStatus.COMPLETED, {"done": task.name})


class Worker(BaseAgent):
    """An agent that does what the test says."""

    def __init__(self, work: Work = succeed, valid: bool | Exception = True) -> None:
        super().__init__("worker-1", AgentType.CODING, ConductorConfig())
        self.work = work
        self.valid = valid
        self.hooks: list[str] = []

    async def _validate_task(self, task: TaskDefinition) -> bool:
        if isinstance(self.valid, Exception):
            raise self.valid
        return self.valid

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        return await self.work(self, task)

    async def _on_start(self) -> None:
        self.hooks.append("start")

    async def _on_stop(self) -> None:
        self.hooks.append("stop")


def raising(error: BaseException) -> Work:
    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        raise error

    return work


def assignment(task: TaskDefinition) -> AgentMessage:
    return AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT,
        sender_id="boss",
        priority=Priority.HIGH,
        payload=TaskAssignmentPayload(task=task).model_dump(mode="json"),
    )


def test_base_agent_is_abstract() -> None:
    with pytest.raises(TypeError, match="_execute"):
        BaseAgent("a", AgentType.TEST, ConductorConfig())  # type: ignore[abstract]


def test_identity_and_first_state() -> None:
    agent = Worker()
    assert (agent.agent_id, agent.agent_type, agent.status) == (
        "worker-1",
        AgentType.CODING,
        AgentStatus.IDLE,
    )
    assert agent.identity.agent_id == "worker-1"
    assert agent.identity.name
    assert agent.state.agent_id == "worker-1"


async def test_start_makes_idle_and_stop_makes_cancelled_and_both_run_their_hook_once() -> None:
    agent = Worker()
    agent.state.status = AgentStatus.FAILED
    seen = []
    for step in (agent.start, agent.stop, agent.stop, agent.start):
        await step()
        seen.append(agent.status)
    assert seen == [AgentStatus.IDLE, AgentStatus.CANCELLED, AgentStatus.CANCELLED, AgentStatus.IDLE]
    assert agent.hooks == ["start", "stop", "start"]


async def test_an_agent_that_cannot_start_is_failed() -> None:
    class Broken(Worker):
        async def _on_start(self) -> None:
            raise OSError("no disk")

    agent = Broken()
    with pytest.raises(OSError, match="no disk"):
        await agent.start()
    assert agent.status is AgentStatus.FAILED


async def test_a_task_runs_with_its_id_in_the_state_and_is_timed_and_filed() -> None:
    seen: list[tuple[AgentStatus, str | None]] = []

    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        seen.append((agent.status, agent.state.current_task_id))
        await asyncio.sleep(0.02)
        return await succeed(agent, task)

    agent, task = Worker(work), TaskDefinition(name="build")
    before = datetime.now(UTC)
    result = await agent.execute_task(task)

    assert seen == [(AgentStatus.RUNNING, task.task_id)]
    assert result.status is TaskStatus.COMPLETED
    assert result.output_data == {"done": "build"}
    assert result.duration_seconds is not None
    assert result.duration_seconds >= 0.015
    assert result.completed_at is not None
    assert before <= result.started_at < result.completed_at
    assert (agent.status, agent.state.current_task_id) == (AgentStatus.IDLE, None)
    assert agent.state.completed_tasks == [task.task_id]
    assert agent.state.failed_tasks == []


async def test_a_failed_result_files_the_task_as_failed_without_an_error() -> None:
    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        return agent._create_result(task.task_id, TaskStatus.FAILED, {}, "tests are red")

    agent, task = Worker(work), TaskDefinition(name="test")
    result = await agent.execute_task(task)
    assert result.error_message == "tests are red"
    assert agent.state.failed_tasks == [task.task_id]
    assert agent.state.error_count == 0


async def test_an_exception_becomes_a_failed_result_that_keeps_it() -> None:
    agent, task = Worker(raising(ValueError("bad input"))), TaskDefinition(name="x")
    result = await agent.execute_task(task)
    assert result.status is TaskStatus.FAILED
    assert result.error_message == "ValueError: bad input"
    assert result.duration_seconds is not None
    error = result.metadata["error"]
    assert (error["error_type"], error["error_code"]) == ("ValueError", "UNKNOWN_ERROR")
    assert "in work" in error["traceback"]
    assert agent.state.error_count == 1
    assert agent.state.failed_tasks == [task.task_id]
    assert agent.status is AgentStatus.IDLE


async def test_the_code_of_one_of_our_errors_is_kept() -> None:
    agent = Worker(raising(ConductorError("slow", "LLM_TIMEOUT")))
    result = await agent.execute_task(TaskDefinition(name="x"))
    assert result.metadata["error"]["error_code"] == "LLM_TIMEOUT"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError(), "RuntimeError"),
        (KeyError("nothere"), "KeyError: 'nothere'"),
        (ConductorError("The index is away.", "INDEX"), "The index is away."),
    ],
)
async def test_an_exception_that_is_no_sentence_of_ours_is_told_with_its_type(
    error: Exception, text: str
) -> None:
    result = await Worker(raising(error)).execute_task(TaskDefinition(name="x"))
    assert result.error_message == text


async def test_an_agent_that_exits_fails_and_ends_nothing_else() -> None:
    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        sys.exit(4)

    result = await Worker(work).execute_task(TaskDefinition(name="x"))
    assert (result.status, result.error_message) == (TaskStatus.FAILED, "SystemExit: 4")
    assert result.metadata["error"]["error_type"] == "SystemExit"


async def test_what_is_no_result_is_a_failure() -> None:
    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        return None  # type: ignore[return-value]

    result = await Worker(work).execute_task(TaskDefinition(name="x"))
    assert result.status is TaskStatus.FAILED
    assert "not a TaskResult" in (result.error_message or "")


async def test_an_agent_error_goes_to_the_caller_and_the_agent_is_idle_again() -> None:
    agent, task = Worker(raising(AgentError("gone", "worker-1"))), TaskDefinition(name="x")
    with pytest.raises(AgentError, match="gone"):
        await agent.execute_task(task)
    assert (agent.status, agent.state.current_task_id) == (AgentStatus.IDLE, None)
    assert agent.state.failed_tasks == [task.task_id]


@pytest.mark.parametrize("valid", [False, KeyError("project")])
async def test_a_task_that_is_not_valid_is_refused_and_not_run(valid: bool | Exception) -> None:
    agent, task = Worker(raising(AssertionError("ran")), valid), TaskDefinition(name="x")
    with pytest.raises(AgentError) as caught:
        await agent.execute_task(task)
    assert caught.value.error_code == "TASK_VALIDATION_FAILED"
    assert (caught.value.agent_id, caught.value.task_id) == ("worker-1", task.task_id)
    assert agent.status is AgentStatus.IDLE
    assert agent.state.total_tasks == 0


async def test_a_cancelled_task_leaves_an_idle_agent() -> None:
    started = asyncio.Event()

    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    agent = Worker(work)
    running = asyncio.create_task(agent.execute_task(TaskDefinition(name="x")))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (agent.status, agent.state.current_task_id) == (AgentStatus.IDLE, None)


async def test_a_task_that_runs_twice_counts_once_as_what_it_was_last() -> None:
    agent, task = Worker(raising(ValueError("first"))), TaskDefinition(name="x")
    await agent.execute_task(task)
    agent.work = succeed
    await agent.execute_task(task)
    await agent.execute_task(task)
    assert agent.state.completed_tasks == [task.task_id]
    assert agent.state.failed_tasks == []


async def test_a_stop_during_a_task_is_not_undone_by_its_end() -> None:
    async def work(agent: Worker, task: TaskDefinition) -> TaskResult:
        await agent.stop()
        return await succeed(agent, task)

    agent = Worker(work)
    result = await agent.execute_task(TaskDefinition(name="x"))
    assert result.status is TaskStatus.COMPLETED
    assert agent.status is AgentStatus.CANCELLED


async def test_an_assignment_is_answered_with_the_result() -> None:
    agent, task = Worker(), TaskDefinition(name="build")
    message = assignment(task)
    answer = await agent.handle_message(message)
    assert answer is not None
    assert answer.message_type is MessageType.TASK_RESULT
    assert (answer.sender_id, answer.recipient_id) == ("worker-1", "boss")
    assert answer.correlation_id == message.message_id
    assert answer.priority is Priority.HIGH
    assert TaskResultPayload.model_validate(answer.payload).result.task_id == task.task_id
    assert AgentMessage.model_validate_json(answer.model_dump_json()) == answer


async def test_an_assignment_without_a_task_names_what_is_wrong() -> None:
    message = AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT, sender_id="boss", payload={"task": {"name": ""}}
    )
    with pytest.raises(AgentError, match=r"task\.name") as caught:
        await Worker().handle_message(message)
    assert caught.value.error_code == "INVALID_PAYLOAD"


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        ({"command": "stop"}, AgentStatus.CANCELLED),
        ({"command": "dance"}, AgentStatus.IDLE),
        ({}, AgentStatus.IDLE),
    ],
)
async def test_control_stops_only_on_stop(payload: dict[str, str], status: AgentStatus) -> None:
    agent = Worker()
    message = AgentMessage(message_type=MessageType.CONTROL, sender_id="boss", payload=payload)
    assert await agent.handle_message(message) is None
    assert agent.status is status


@pytest.mark.parametrize(
    "message_type",
    [MessageType.TASK_RESULT, MessageType.STATUS_UPDATE, MessageType.ERROR, MessageType.FEEDBACK],
)
async def test_other_messages_are_not_answered(message_type: MessageType) -> None:
    message = AgentMessage(message_type=message_type, sender_id="boss", payload={"command": "stop"})
    agent = Worker()
    assert await agent.handle_message(message) is None
    assert agent.status is AgentStatus.IDLE


async def test_a_heartbeat_stamps_the_state() -> None:
    agent = Worker()
    assert agent.state.last_heartbeat is None
    before = datetime.now(UTC)
    await agent.send_heartbeat()
    assert agent.state.last_heartbeat is not None
    assert before <= agent.state.last_heartbeat == agent.state.updated_at
