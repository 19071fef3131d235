"""What an agent has at hand: progress on the bus, log lines with ids, the host's bus and state."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conductor.agents import progress as progress_module
from conductor.agents.context import TaskContext
from conductor.agents.function import agent
from conductor.agents.task_log import TaskIds
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentStatus, MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import AgentMessage, StatusUpdatePayload
from conductor.core.models import TaskDefinition, TaskResult
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.scripted_agent import ScriptedAgent

Heard = list[tuple[float | None, str | None]]


@pytest.fixture
async def bus() -> AsyncIterator[InMemoryMessageBus]:
    async with InMemoryMessageBus() as bus:
        yield bus


@pytest.fixture
async def coordinator(bus: InMemoryMessageBus) -> AsyncIterator[AgentCoordinator]:
    coordinator = AgentCoordinator(bus, InMemoryStateManager())
    await coordinator.start()
    yield coordinator
    await coordinator.stop()


async def reports(bus: InMemoryMessageBus, channel: str) -> Heard:
    heard: Heard = []

    async def hear(message: AgentMessage) -> None:
        assert message.message_type is MessageType.STATUS_UPDATE
        report = StatusUpdatePayload.model_validate(message.payload)
        heard.append((report.progress_percent, report.message))

    await bus.subscribe(channel, hear)
    return heard


@agent("coding")
async def steps(data: dict[str, Any], context: TaskContext) -> None:
    for percent, message in data["steps"]:
        await context.progress(percent, message)
        await asyncio.sleep(data.get("pause", 0))


async def test_progress_is_heard_on_the_channels_of_the_task_and_its_workflow(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    await coordinator.register_agent(steps("steps-1", ConductorConfig()))
    task = steps.task({"steps": [(40, "linting")]}, metadata={"workflow_id": "w-1"})
    messages: list[AgentMessage] = []

    async def hear(message: AgentMessage) -> None:
        messages.append(message)

    for channel in (f"conductor:task:{task.task_id}", "conductor:workflow:w-1"):
        await bus.subscribe(channel, hear)
    await coordinator.dispatch_task(task)
    assert [message.sender_id for message in messages] == ["steps-1"] * 2
    for message in messages:
        assert StatusUpdatePayload.model_validate(message.payload) == StatusUpdatePayload(
            agent_id="steps-1",
            status=AgentStatus.RUNNING,
            current_task_id=task.task_id,
            progress_percent=40,
            message="linting",
        )


async def test_ten_thousand_reports_are_few_messages_and_the_last_is_among_them(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    await coordinator.register_agent(steps("steps-1", ConductorConfig()))
    task = steps.task({"steps": [(number / 100, None) for number in range(10_001)]})
    heard = await reports(bus, f"conductor:task:{task.task_id}")
    began = time.monotonic()
    await coordinator.dispatch_task(task)
    seconds = time.monotonic() - began
    assert heard[0] == (0, None)
    assert heard[-1] == (100, None)
    assert len(heard) <= 2 + seconds / progress_module.INTERVAL


async def test_a_report_that_was_held_back_is_sent_while_the_task_goes_on(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    heard_both = asyncio.Event()

    @agent("coding")
    async def waits(context: TaskContext) -> None:
        await context.progress(1)
        await context.progress(2)
        await heard_both.wait()

    await coordinator.register_agent(waits("waits-1", ConductorConfig()))
    task = waits.task(timeout_seconds=5)

    async def hear(message: AgentMessage) -> None:
        if message.payload["progress_percent"] == 2:
            heard_both.set()

    await bus.subscribe(f"conductor:task:{task.task_id}", hear)
    result = await coordinator.dispatch_task(task)
    assert result.status is TaskStatus.COMPLETED


async def test_reports_of_a_task_that_has_ended_are_dropped(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    kept: list[TaskContext] = []

    @agent("coding")
    async def keeps(context: TaskContext) -> None:
        await context.progress(1)
        kept.append(context)

    await coordinator.register_agent(keeps("keeps-1", ConductorConfig()))
    task = keeps.task()
    heard = await reports(bus, f"conductor:task:{task.task_id}")
    await coordinator.dispatch_task(task)
    await kept[0].progress(2)
    await kept[0]._finish()
    assert heard == [(1, None)]
    assert bus.published_count == 1


@pytest.mark.parametrize("percent", [-1, 100.5, float("nan"), "much", None])
async def test_a_percentage_that_is_none_is_refused(percent: Any) -> None:
    context = ScriptedAgent().context(TaskDefinition(name="t"))
    with pytest.raises(ConductorError) as caught:
        await context.progress(percent)
    assert caught.value.error_code == "INVALID_PROGRESS"
    assert f"percent {percent!r}: it must be a number from 0 to 100" in caught.value.message


async def test_a_message_that_is_no_text_is_refused() -> None:
    context = ScriptedAgent().context(TaskDefinition(name="t"))
    with pytest.raises(ConductorError, match="message 7: it must be text"):
        await context.progress(1, 7)  # type: ignore[arg-type]


async def test_a_bus_that_fails_does_not_fail_the_task(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    await coordinator.register_agent(steps("steps-1", ConductorConfig()))
    await bus.disconnect()
    task = steps.task({"steps": [(1, None)]})
    result = await coordinator.dispatch_task(task)
    assert result.status is TaskStatus.COMPLETED
    [line] = [record for record in caplog.records if "progress was not published" in record.message]
    assert f"conductor:task:{task.task_id}" in line.message
    assert line.task_id == task.task_id


async def test_a_subscriber_that_hangs_does_not_keep_the_task_from_ending(
    bus: InMemoryMessageBus,
    coordinator: AgentCoordinator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress_module, "LAST_REPORT_LIMIT", 0.01)
    await coordinator.register_agent(steps("steps-1", ConductorConfig()))
    task = steps.task({"steps": [(1, None)]}, timeout_seconds=5)

    async def hang(message: AgentMessage) -> None:
        await asyncio.Event().wait()

    await bus.subscribe(f"conductor:task:{task.task_id}", hang)
    assert (await coordinator.dispatch_task(task)).status is TaskStatus.COMPLETED
    assert "the last report of progress was given up" in caplog.text


async def test_an_id_that_no_channel_can_have_skips_that_channel_only(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    await coordinator.register_agent(steps("steps-1", ConductorConfig()))
    everything = await reports(bus, "*")
    for task_id, workflow_id in [("x" * 200, "w-1"), ("a b", 7), ("t-1", "a:b")]:
        task = steps.task(
            {"steps": [(1, task_id[:3])]}, task_id=task_id, metadata={"workflow_id": workflow_id}
        )
        assert (await coordinator.dispatch_task(task)).status is TaskStatus.COMPLETED
    assert everything == [(1, "xxx"), (1, "t-1")]


async def test_any_agent_reports_with_its_context() -> None:
    contexts: list[TaskContext] = []

    async def work(worker: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        contexts.extend([worker.context(task), await asyncio.create_task(again(worker, task))])
        await worker.context(task).progress(50, "half")
        return worker.result(task)

    async def again(worker: ScriptedAgent, task: TaskDefinition) -> TaskContext:
        return worker.context(task)

    async with InMemoryMessageBus() as bus:
        heard = await reports(bus, "conductor:task:*")
        worker = ScriptedAgent(work=work)
        worker.attach(bus, InMemoryStateManager())
        task = TaskDefinition(name="t")
        await worker.execute_task(task)
        assert heard == [(50, "half")]
    assert contexts[0] is contexts[1]
    assert worker.context(task) is not contexts[0]


async def test_it_has_bus_state_and_configuration_of_the_host(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    seen: list[object] = []

    @agent("coding")
    async def look(context: TaskContext) -> None:
        state = await context.state.get_agent_state(context.agent_id)
        seen.extend([context.bus, context.config, state and state.current_task_id])

    config = ConductorConfig()
    await coordinator.register_agent(look("look-1", config))
    task = look.task()
    await coordinator.dispatch_task(task)
    assert seen == [bus, config, task.task_id]


async def test_without_a_host_progress_tells_nobody_and_the_bus_is_missed() -> None:
    context = steps("steps-1", ConductorConfig()).context(TaskDefinition(name="t"))
    await context.progress(10, "alone")
    for name in ("bus", "state"):
        with pytest.raises(AgentError) as caught:
            getattr(context, name)
        assert caught.value.error_code == "NOT_HOSTED"


def ids(record: logging.LogRecord) -> tuple[Any, Any, Any]:
    return record.task_id, record.agent_id, record.workflow_id  # type: ignore[attr-defined]


async def test_lines_have_the_ids_in_their_text_and_as_attributes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")

    @agent("coding")
    async def says(context: TaskContext) -> None:
        context.log.info("%d %% of %s", 5, "it", extra={"color": "red"})
        try:
            raise ValueError("no")
        except ValueError:
            context.log.exception("failed")

    task = says.task(task_id="t-1", metadata={"workflow_id": "w-1"})
    await says("says-1", ConductorConfig()).execute_task(task)
    first, second = caplog.records
    assert first.getMessage() == "[agent says-1, task t-1, workflow w-1] 5 % of it"
    assert (first.name, first.color, ids(first)) == (__name__, "red", ("t-1", "says-1", "w-1"))  # type: ignore[attr-defined]
    assert first.filename == "test_context.py"
    assert second.getMessage() == "[agent says-1, task t-1, workflow w-1] failed"
    assert second.exc_info


async def test_an_id_can_neither_break_a_line_nor_its_arguments(caplog: pytest.LogCaptureFixture) -> None:
    context = ScriptedAgent().context(TaskDefinition(name="t", task_id="a\n%s\x1b"))
    context.log.warning("%s", "x")
    [record] = caplog.records
    assert record.getMessage() == "[agent coder, task a??s?] x"
    assert ids(record) == ("a\n%s\x1b", "coder", None)


async def test_a_filter_binds_the_ids_to_the_lines_of_every_logger_while_a_task_runs() -> None:
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    handler.addFilter(TaskIds())
    handler.addFilter(TaskIds())
    other = logging.getLogger("tests.somebody_elses")
    other.addHandler(handler)

    @agent("coding")
    async def says() -> None:
        other.error("in the %s", "task")
        await asyncio.create_task(asyncio.to_thread(other.error, "in a thread"))

    try:
        other.error("before")
        await says("says-1", ConductorConfig()).execute_task(says.task(task_id="t-1"))
        other.error("after")
    finally:
        other.removeHandler(handler)
    assert [line.getMessage() for line in lines] == [
        "before",
        "[agent says-1, task t-1] in the task",
        "[agent says-1, task t-1] in a thread",
        "after",
    ]
    assert ids(lines[1]) == ids(lines[2]) == ("t-1", "says-1", None)
    assert not hasattr(lines[3], "task_id")


async def test_two_tasks_at_once_keep_their_lines_and_reports_apart(bus: InMemoryMessageBus) -> None:
    both = asyncio.Barrier(2)

    @agent("coding")
    async def meets(context: TaskContext) -> dict[str, str]:
        await both.wait()
        await context.progress(1, context.task_id)
        return {"said": context.log.prefix}

    worker = meets("meets-1", ConductorConfig())
    worker.attach(bus, InMemoryStateManager())
    heard = await reports(bus, "conductor:task:*")
    results = await asyncio.gather(
        *(worker.execute_task(meets.task(task_id=task_id)) for task_id in ("a", "b"))
    )
    assert [result.output_data["said"] for result in results] == [
        "[agent meets-1, task a] ",
        "[agent meets-1, task b] ",
    ]
    assert sorted(heard) == [(1, "a"), (1, "b")]


async def test_the_last_report_of_a_failing_task_is_sent(
    bus: InMemoryMessageBus, coordinator: AgentCoordinator
) -> None:
    @agent("coding")
    async def breaks(context: TaskContext) -> None:
        await context.progress(10)
        await context.progress(20, "about to break")
        raise ValueError("broken")

    await coordinator.register_agent(breaks("breaks-1", ConductorConfig()))
    task = breaks.task()
    heard = await reports(bus, f"conductor:task:{task.task_id}")
    assert (await coordinator.dispatch_task(task)).status is TaskStatus.FAILED
    assert heard == [(10, None), (20, "about to break")]
