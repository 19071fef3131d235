"""Workflows: phases in order, failures recorded, gates, feedback, saved at every step."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from conductor.core.enums import AgentType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import AgentError, ConfigurationError, WorkflowError
from conductor.core.messages import FeedbackPayload
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.policy_engine import PhaseGatePolicy, PolicyEngine
from conductor.orchestration.workflow_engine import PHASE_AGENT_TYPES, WorkflowEngine
from tests.support.office import staffed
from tests.support.recording_state import RecordingStateManager
from tests.support.scripted_agent import ScriptedAgent, failing, succeed

DEVELOPMENT, DEVOPS, MONITORING = WorkflowPhase


@pytest.fixture
async def state() -> AsyncIterator[RecordingStateManager]:
    async with RecordingStateManager() as state:
        yield state


@pytest.fixture
async def coordinator(state: RecordingStateManager) -> AsyncIterator[AgentCoordinator]:
    async with staffed(state) as made:
        yield made


def agent(coordinator: AgentCoordinator, agent_id: str) -> ScriptedAgent:
    found = coordinator.get_agent(agent_id)
    assert isinstance(found, ScriptedAgent)
    return found


def workflow(*agent_types: str | None, **fields: Any) -> WorkflowDefinition:
    tasks = [
        {"task_id": f"{number}-{agent_type}", "name": str(agent_type), "assigned_to": agent_type}
        for number, agent_type in enumerate(agent_types)
    ]
    return WorkflowDefinition.model_validate({"name": "release", "tasks": tasks, **fields})


def gate(rate: float) -> PolicyEngine:
    engine = PolicyEngine()
    engine.register_policy(PhaseGatePolicy(rate))
    return engine


def outline(state: WorkflowState) -> list[tuple[str, str, int, int, int]]:
    keys = ("phase", "result", "task_count", "completed_count", "failed_count")
    return [tuple(entry[key] for key in keys) for entry in state.phase_history]


def test_every_agent_type_belongs_to_one_phase() -> None:
    assert {phase: set(types) for phase, types in PHASE_AGENT_TYPES.items()} == {
        DEVELOPMENT: {AgentType.CODING, AgentType.REVIEW, AgentType.TEST_DATA, AgentType.TEST},
        DEVOPS: {AgentType.DEVOPS, AgentType.DEPLOYING},
        MONITORING: {AgentType.MONITOR},
    }
    assert sum(map(len, PHASE_AGENT_TYPES.values())) == len(AgentType)


async def test_phases_run_in_order_and_tasks_in_theirs(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    definition = workflow("monitor", "devops", "review", "coding")
    final = await WorkflowEngine(coordinator, state).run_workflow(definition)
    assert final.status is TaskStatus.COMPLETED
    assert list(final.task_results) == ["2-review", "3-coding", "1-devops", "0-monitor"]
    assert {result.task_id: result.agent_id for result in final.task_results.values()} == {
        "2-review": "review",
        "3-coding": "coding",
        "1-devops": "devops",
        "0-monitor": "monitor",
    }
    assert outline(final) == [
        ("development", "completed", 2, 2, 0),
        ("devops", "completed", 1, 1, 0),
        ("monitoring", "completed", 1, 1, 0),
    ]
    assert set(final.agent_states) == {"coding", "review", "devops", "monitor"}
    assert final.agent_states["coding"].completed_tasks == ["3-coding"]
    assert final.workflow_id == definition.workflow_id
    assert final.current_phase is MONITORING
    assert final.duration_seconds is not None
    assert final.error_log == []


async def test_history_entries_have_their_keys_and_ordered_times(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    final = await WorkflowEngine(coordinator, state).run_workflow(workflow("coding"))
    times: list[datetime] = []
    for entry in final.phase_history:
        assert set(entry) == {
            *("phase", "started_at", "completed_at", "result"),
            *("task_count", "completed_count", "failed_count"),
        }
        times += [datetime.fromisoformat(entry["started_at"]), datetime.fromisoformat(entry["completed_at"])]
    assert times == sorted(times)
    assert all(time.tzinfo is not None for time in times)


async def test_phases_without_tasks_are_recorded_as_skipped(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    final = await WorkflowEngine(coordinator, state).run_workflow(workflow())
    assert final.status is TaskStatus.COMPLETED
    assert outline(final) == [
        (phase, "skipped", 0, 0, 0) for phase in ("development", "devops", "monitoring")
    ]


async def test_only_the_definitions_phases_run_and_stray_tasks_are_skipped(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    definition = workflow("coding", "monitor", phases=["monitoring"])
    final = await WorkflowEngine(coordinator, state).run_workflow(definition)
    assert outline(final) == [("monitoring", "completed", 1, 1, 0)]
    stray = final.task_results["0-coding"]
    assert stray.status is TaskStatus.SKIPPED
    assert "coding" in (stray.error_message or "")
    assert agent(coordinator, "coding").tasks == []


async def test_a_failed_task_is_recorded_and_the_run_goes_on(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    agent(coordinator, "coding").work = failing(ValueError("bad"))
    final = await WorkflowEngine(coordinator, state).run_workflow(workflow("coding", "review", "devops"))
    assert final.status is TaskStatus.COMPLETED
    assert (final.completed_task_count, final.failed_task_count) == (2, 1)
    assert final.task_results["0-coding"].error_message == "ValueError: bad"
    assert outline(final)[0] == ("development", "failed", 2, 1, 1)
    assert final.error_log == []


async def test_a_task_whose_dispatching_raised_is_in_results_and_error_log(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    agent(coordinator, "coding").work = failing(AgentError("gone", "coding", "0-coding", "GONE"))
    await coordinator.unregister_agent("review")
    final = await WorkflowEngine(coordinator, state).run_workflow(workflow("coding", "review", None))
    assert final.status is TaskStatus.COMPLETED
    results = final.task_results
    assert {result.status for result in results.values()} == {TaskStatus.FAILED}
    assert (results["0-coding"].agent_id, results["0-coding"].error_message) == ("coding", "gone")
    assert [(entry["task_id"], entry["error_code"], entry["phase"]) for entry in final.error_log] == [
        ("0-coding", "GONE", "development"),
        ("1-review", "NO_AVAILABLE_AGENT", "development"),
        ("2-None", "NO_AGENT_TYPE", "development"),
    ]
    assert await state.get_workflow_state(final.workflow_id) == final


class BrokenDispatcher:
    """A dispatcher that meets an error that is none of ours."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def dispatch_task(self, task: TaskDefinition) -> TaskResult:
        raise self.error


async def test_any_dispatcher_and_any_of_its_errors_will_do(state: RecordingStateManager) -> None:
    engine = WorkflowEngine(BrokenDispatcher(TimeoutError()), state)
    final = await engine.run_workflow(workflow("coding"))
    assert final.status is TaskStatus.COMPLETED
    assert final.task_results["0-coding"].error_message == "TimeoutError"
    assert final.error_log[0]["error_type"] == "TimeoutError"


async def test_error_details_without_a_json_form_do_not_stop_the_run(state: RecordingStateManager) -> None:
    error = AgentError("odd", "a", details={"odd": object()})
    final = await WorkflowEngine(BrokenDispatcher(error), state).run_workflow(workflow("coding"))
    assert "object" in final.error_log[0]["details"]["odd"]
    assert await state.get_workflow_state(final.workflow_id) == final


async def test_a_run_can_be_told_to_stop_at_the_first_failure(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    agent(coordinator, "coding").work = failing(ValueError("bad"))
    engine = WorkflowEngine(coordinator, state, stop_on_failure=True)
    final = await engine.run_workflow(workflow("coding", "review", "devops"))
    assert final.status is TaskStatus.FAILED
    assert final.completed_at is not None
    assert [result.status.value for result in final.task_results.values()] == ["failed", "skipped", "skipped"]
    assert [entry["phase"] for entry in final.phase_history] == ["development"]


async def test_the_state_is_saved_after_every_task_and_every_phase(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    agent(coordinator, "review").work = failing(AgentError("gone", "review"))
    final = await WorkflowEngine(coordinator, state).run_workflow(workflow("coding", "review", "devops"))
    counts = [(len(saved.task_results), len(saved.phase_history)) for saved in state.saved]
    for step in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (3, 3)]:
        assert step in counts
    assert all(after >= before for before, after in pairwise(counts))
    assert {saved.status for saved in state.saved[:-1]} == {TaskStatus.IN_PROGRESS}
    assert [saved.current_phase for saved in state.saved if len(saved.phase_history) == 1][-1] is DEVOPS
    assert state.saved[-1] == final


async def test_a_task_costs_no_save_of_the_whole_state(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    counts = []
    for tasks in (1, 20):
        state.whole_saves = 0
        final = await WorkflowEngine(coordinator, state).run_workflow(workflow(*["coding"] * tasks))
        assert len(final.task_results) == tasks
        counts.append(state.whole_saves)
    assert counts[0] == counts[1]


async def test_a_workflow_state_deleted_meanwhile_is_written_again(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    definition = workflow("coding", "review")

    async def delete(worker: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        await state.delete_workflow_state(definition.workflow_id)
        return await succeed(worker, task)

    agent(coordinator, "coding").work = delete
    final = await WorkflowEngine(coordinator, state).run_workflow(definition)
    assert final.completed_task_count == 2
    assert await state.get_workflow_state(definition.workflow_id) == final


async def test_a_cancelled_run_is_saved_as_failed(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    began = asyncio.Event()

    async def forever(worker: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        began.set()
        await asyncio.Event().wait()
        return worker.result(task)

    agent(coordinator, "coding").work = forever
    definition = workflow("coding")
    running = asyncio.create_task(WorkflowEngine(coordinator, state).run_workflow(definition))
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    saved = await state.get_workflow_state(definition.workflow_id)
    assert saved is not None
    assert saved.status is TaskStatus.FAILED
    assert saved.completed_at is not None
    assert saved.error_log[-1]["error_code"] == "WORKFLOW_CANCELLED"
    assert saved.metadata["outcome"] == "cancelled"
    [result] = saved.task_results.values()
    assert result.status is TaskStatus.SKIPPED


async def test_the_gate_without_an_engine_is_open(state: RecordingStateManager) -> None:
    assert await WorkflowEngine(BrokenDispatcher(ValueError()), state).check_phase_gate(WorkflowState())


async def test_the_gate_asks_the_policies(state: RecordingStateManager) -> None:
    engine = WorkflowEngine(BrokenDispatcher(ValueError()), state, gate(0.5))
    good = TaskResult(task_id="t", agent_id="a", status=TaskStatus.COMPLETED)
    assert await engine.check_phase_gate(WorkflowState(task_results={"t": good}))
    assert not await engine.check_phase_gate(WorkflowState())


async def test_a_closed_gate_ends_the_run_as_failed(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    agent(coordinator, "coding").work = failing(ValueError("bad"))
    engine = WorkflowEngine(coordinator, state, gate(0.8))
    final = await engine.run_workflow(workflow("coding", "review", "devops"))
    assert final.status is TaskStatus.FAILED
    assert final.error_log[-1]["error_code"] == "PHASE_GATE_CLOSED"
    assert final.task_results["2-devops"].status is TaskStatus.SKIPPED
    assert agent(coordinator, "devops").tasks == []


async def test_after_the_last_phase_there_is_no_gate(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    agent(coordinator, "coding").work = failing(ValueError("bad"))
    definition = workflow("coding", phases=["development"])
    final = await WorkflowEngine(coordinator, state, gate(1.0)).run_workflow(definition)
    assert final.status is TaskStatus.COMPLETED


async def test_an_open_gate_and_skipped_phases_do_not_hold_up_the_run(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    engine = WorkflowEngine(coordinator, state, gate(1.0))
    final = await engine.run_workflow(workflow("devops", "monitor"))
    assert final.status is TaskStatus.COMPLETED


FEEDBACK = FeedbackPayload(source_agent_id="review", findings=["too complex"])


async def test_feedback_runs_development_again_with_the_findings(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    coder = agent(coordinator, "coding")
    coder.work = failing(ValueError("bad"))
    engine, definition = WorkflowEngine(coordinator, state), workflow("coding", "devops")
    run = await engine.run_workflow(definition)
    again = await engine.trigger_feedback_loop(run, definition, FEEDBACK)

    assert again is run
    assert (again.feedback_count, again.current_phase) == (1, DEVELOPMENT)
    assert again.status is TaskStatus.COMPLETED
    assert outline(again)[-1] == ("development", "completed", 1, 1, 0)
    assert len(again.phase_history) == 4
    assert again.task_results["0-coding"].status is TaskStatus.COMPLETED
    assert set(again.task_results) == {"0-coding", "1-devops"}
    first, second = coder.tasks
    assert "feedback" not in first.input_data
    assert second.input_data["feedback"]["findings"] == ["too complex"]
    assert first.task_id != second.task_id
    assert len(agent(coordinator, "devops").tasks) == 1
    assert await state.get_workflow_state(run.workflow_id) == again


async def test_feedback_in_the_middle_of_a_run_leaves_it_running(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    run = WorkflowState(status=TaskStatus.IN_PROGRESS, current_phase=MONITORING)
    engine = WorkflowEngine(coordinator, state)
    await engine.trigger_feedback_loop(run, workflow("coding"), FEEDBACK)
    assert run.is_running
    assert run.completed_at is None


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_past_the_limit_feedback_is_refused_and_nothing_changes(
    coordinator: AgentCoordinator, state: RecordingStateManager, limit: int
) -> None:
    engine, definition = WorkflowEngine(coordinator, state, max_feedback_loops=limit), workflow("coding")
    run = WorkflowState(workflow_id="w")
    for _ in range(limit):
        await engine.trigger_feedback_loop(run, definition, FEEDBACK)
    before = run.model_copy(deep=True)
    with pytest.raises(WorkflowError) as caught:
        await engine.trigger_feedback_loop(run, definition, FEEDBACK)
    assert caught.value.error_code == "MAX_FEEDBACK_LOOPS"
    assert caught.value.workflow_id == "w"
    assert run == before
    assert run.feedback_count == limit


def test_the_default_limit_is_three_and_a_negative_one_is_refused(state: RecordingStateManager) -> None:
    dispatcher = BrokenDispatcher(ValueError())
    assert WorkflowEngine(dispatcher, state).max_feedback_loops == 3
    with pytest.raises(ConfigurationError, match="max_feedback_loops"):
        WorkflowEngine(dispatcher, state, max_feedback_loops=-1)


async def test_two_workflows_run_at_the_same_time(
    coordinator: AgentCoordinator, state: RecordingStateManager
) -> None:
    engine = WorkflowEngine(coordinator, state)
    runs = [engine.run_workflow(workflow("coding", workflow_id="a")), engine.run_workflow(workflow("test"))]
    for final in await asyncio.gather(*runs):
        assert final.completed_task_count == 1
