"""A run is announced, goes on with another engine, is run by one at a time, and ends when it is told to."""

import asyncio
from typing import Any

import pytest

from conductor.core.enums import AgentType, MessageType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import MessageBusError, StateError, WorkflowError
from conductor.core.messages import AgentMessage, FeedbackPayload
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.policy_engine import PhaseGatePolicy
from tests.support.office import DyingState, Office, gate, monitor, staffed, workflow
from tests.support.scripted_agent import ScriptedAgent, succeed
from tests.support.waiting import wait_until


async def test_every_step_of_a_run_is_published(office: Office) -> None:
    await office.listen("w")
    await office.engine().run_workflow(workflow("coding", "devops"))
    assert office.events == [
        "workflow_started",
        *("phase_started", "task_started", "task_ended", "phase_ended"),
        *("phase_started", "task_started", "task_ended", "phase_ended"),
        *("phase_started", "phase_ended"),
        "workflow_ended",
    ]
    results = [m for m in office.messages if m.message_type is MessageType.TASK_RESULT]
    assert [m.payload["result"]["task_id"] for m in results] == ["t-coding", "t-devops"]
    ended = next(m.payload for m in office.messages if m.payload.get("event") == "task_ended")
    assert ended == {
        "event": "task_ended",
        "workflow_id": "w",
        "status": "completed",
        "phase": "development",
        "task_id": "t-coding",
        "task_name": "coding",
        "agent_id": "coding",
    }
    assert office.messages[-1].payload["status"] == "completed"


class DeafBus(InMemoryMessageBus):
    """A bus that has lost its broker."""

    async def publish(self, channel: str, message: AgentMessage) -> None:
        raise MessageBusError("gone", "BROKER_UNAVAILABLE")


async def test_a_bus_that_fails_does_not_fail_the_run(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    async with DeafBus() as bus:
        final = await office.engine(message_bus=bus).run_workflow(workflow("coding"))
    assert final.status is TaskStatus.COMPLETED
    assert "workflow w: a message was not published: gone" in caplog.text


async def test_a_closed_gate_says_which_policy_and_why(office: Office) -> None:
    await office.listen("w")
    office.agent("coding").work = lambda agent, task: asyncio.sleep(0, agent.result(task, TaskStatus.FAILED))
    final = await office.engine(policy_engine=gate(0.5)).run_workflow(workflow("coding", "devops"))
    entry = final.error_log[-1]
    assert (final.status, entry["error_code"]) == (TaskStatus.FAILED, "PHASE_GATE_CLOSED")
    assert entry["details"]["policy_name"] == PhaseGatePolicy().name
    assert entry["details"]["reason"] in entry["message"]
    assert office.events[-2:] == ["gate_denied", "workflow_ended"]
    denied = next(m.payload for m in office.messages if m.payload.get("event") == "gate_denied")
    assert denied["message"] == entry["message"]


async def test_a_run_that_has_ended_is_returned_as_it_is(office: Office) -> None:
    first = await office.engine().run_workflow(workflow("coding"))
    assert await office.engine().run_workflow(workflow("coding")) == first
    assert await office.engine().resume_workflow("w") == first
    assert await office.engine().cancel_workflow("w") == first
    assert office.ran() == ["t-coding"]


async def test_the_id_of_another_definition_is_refused(office: Office) -> None:
    await office.engine().run_workflow(workflow("coding"))
    with pytest.raises(WorkflowError) as caught:
        await office.engine().run_workflow(workflow("coding", "review"))
    assert caught.value.error_code == "WORKFLOW_CHANGED"


async def test_a_definition_made_anew_is_the_same_whatever_ids_it_was_given(office: Office) -> None:
    def made() -> WorkflowDefinition:
        first = TaskDefinition(name="a", assigned_to=AgentType.CODING)
        second = TaskDefinition(
            name="b",
            assigned_to=AgentType.REVIEW,
            depends_on=[first.task_id],
            input_data={"by": f"${{tasks.{first.task_id}.by}}"},
        )
        return WorkflowDefinition(workflow_id="w", name="w", tasks=[first, second])

    final = await office.engine().run_workflow(made())
    assert final.completed_task_count == 2
    assert await office.engine().run_workflow(made()) == final
    other = made().model_copy(update={"tasks": [*made().tasks[:1], made().tasks[1]]})
    with pytest.raises(WorkflowError):
        await office.engine().run_workflow(other)


async def test_a_workflow_that_there_is_not_cannot_be_resumed_nor_cancelled(office: Office) -> None:
    for use in (office.engine().resume_workflow, office.engine().cancel_workflow):
        with pytest.raises(WorkflowError, match="There is no workflow 'nope'") as caught:
            await use("nope")
        assert caught.value.error_code == "WORKFLOW_NOT_FOUND"
    await office.state.save_workflow_state(WorkflowState(workflow_id="bare"))
    with pytest.raises(WorkflowError) as caught:
        await office.engine().resume_workflow("bare")
    assert caught.value.error_code == "WORKFLOW_NOT_RESUMABLE"


async def test_wherever_the_store_goes_away_the_run_goes_on_and_no_task_runs_twice(dying: DyingState) -> None:
    kinds = ("coding", "review", "test_data", "test", "devops", "deploying", "monitor")
    for saves in range(1, 15):
        async with staffed(dying) as coordinator:
            office, definition = Office(coordinator), workflow(*kinds, workflow_id=f"w{saves}")
            tasks = [t.model_copy(update={"task_id": f"{saves}-{t.name}"}) for t in definition.tasks]
            definition = definition.model_copy(update={"tasks": tasks})
            dying.saves_left = saves
            with pytest.raises(StateError):
                await office.engine().run_workflow(definition)
            dying.saves_left = -1
            final = await office.engine().resume_workflow(definition.workflow_id)
            assert final.status is TaskStatus.COMPLETED
            assert final.completed_task_count == len(kinds)
            assert [entry["phase"] for entry in final.phase_history] == [
                phase.value for phase in WorkflowPhase
            ]
            assert office.ran() == sorted(task.task_id for task in tasks)


async def test_two_engines_do_not_run_one_workflow_at_once(office: Office) -> None:
    office.agent("coding").work = office.never_end
    running = asyncio.create_task(office.engine().run_workflow(workflow("coding")))
    await office.begun.wait()
    with pytest.raises(WorkflowError) as caught:
        await office.engine(lease_seconds=0.2).run_workflow(workflow("coding"))
    assert caught.value.error_code == "WORKFLOW_RUNNING"
    with pytest.raises(WorkflowError) as caught:
        await office.engine(lease_seconds=0.2).resume_workflow("w")
    assert caught.value.error_code == "WORKFLOW_RUNNING"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_engine_that_lost_its_workflow_to_another_dispatches_nothing_more(office: Office) -> None:
    async def held(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        if not office.begun.is_set():
            office.begun.set()
            await asyncio.Event().wait()
        return agent.result(task)

    office.agent("coding").work = held
    definition = workflow("coding", "review")
    first = asyncio.create_task(office.engine(lease_seconds=60).run_workflow(definition))
    await office.begun.wait()
    owner = await office.state.lease_owner("workflow:w")
    assert owner is not None
    await office.state.release_lease("workflow:w", owner)
    await office.coordinator.register_agent(ScriptedAgent("second", AgentType.CODING))
    final = await office.engine().resume_workflow("w")
    assert final.status is TaskStatus.COMPLETED
    with pytest.raises(WorkflowError) as caught:
        await first
    assert caught.value.error_code == "WORKFLOW_LEASE_LOST"
    assert len(office.agent("review").tasks) == 1
    assert await office.state.get_workflow_state("w") == final


async def test_a_lease_that_ran_out_while_nobody_wanted_it_is_taken_again(office: Office) -> None:
    async def lose(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        owner = await office.state.lease_owner("workflow:w")
        assert owner is not None
        await office.state.release_lease("workflow:w", owner)

        async def retaken() -> bool:
            return await office.state.lease_owner("workflow:w") == owner

        await wait_until(retaken)
        return agent.result(task)

    office.agent("coding").work = lose
    final = await office.engine(lease_seconds=0.2).run_workflow(workflow("coding", "review"))
    assert final.status is TaskStatus.COMPLETED


async def test_cancelling_ends_what_runs_and_keeps_what_was_done(office: Office) -> None:
    await office.listen("w")
    office.agent("review").work = office.never_end
    definition = workflow("coding", "review", "test", "devops")
    running = asyncio.create_task(office.engine().run_workflow(definition))
    await office.begun.wait()
    cancelled = await office.engine().cancel_workflow("w")
    final = await running
    assert final == cancelled
    assert (final.status, final.metadata["outcome"]) == (TaskStatus.FAILED, "cancelled")
    assert final.error_log[-1]["error_code"] == "WORKFLOW_CANCELLED"
    assert [(name, r.status.value) for name, r in final.task_results.items()] == [
        ("t-coding", "completed"),
        ("t-review", "skipped"),
        ("t-test", "skipped"),
        ("t-devops", "skipped"),
    ]
    assert office.agent("review").state.current_task_id is None
    (control,) = [m for m in office.messages if m.message_type is MessageType.CONTROL]
    assert control.payload == {"command": "cancel", "workflow_id": "w"}


async def test_cancelling_works_when_no_engine_lives(dying: DyingState) -> None:
    async with staffed(dying) as coordinator:
        office = Office(coordinator)
        dying.saves_left = 3
        with pytest.raises(StateError):
            await office.engine().run_workflow(workflow("coding", "review"))
        dying.saves_left = -1
        final = await office.engine().cancel_workflow("w")
        assert final.metadata["outcome"] == "cancelled"
        assert final.task_results["t-coding"].status is TaskStatus.COMPLETED
        assert await office.engine().resume_workflow("w") == final


async def test_a_run_that_takes_too_long_is_ended(office: Office) -> None:
    office.agent("review").work = office.never_end
    definition = workflow("coding", "review", "devops", timeout_seconds=0.3)
    final = await office.engine().run_workflow(definition)
    assert final.status is TaskStatus.FAILED
    assert final.error_log[-1]["error_code"] == "WORKFLOW_TIMEOUT"
    assert "outcome" not in final.metadata
    assert [r.status.value for r in final.task_results.values()] == ["completed", "skipped", "skipped"]


async def test_the_time_before_a_run_was_resumed_counts(dying: DyingState) -> None:
    coordinator = AgentCoordinator(InMemoryMessageBus(), dying)
    await coordinator.start()
    await coordinator.register_agent(ScriptedAgent("coding"))
    office = Office(coordinator)
    dying.saves_left = 2
    with pytest.raises(StateError):
        await office.engine().run_workflow(workflow("coding", timeout_seconds=100))
    dying.saves_left = -1
    saved = await dying.get_workflow_state("w")
    assert saved is not None
    saved.started_at = saved.started_at.replace(year=saved.started_at.year - 1)
    await dying.save_workflow_state(saved)
    final = await office.engine().resume_workflow("w")
    assert final.error_log[-1]["error_code"] == "WORKFLOW_TIMEOUT"
    await coordinator.stop()


@pytest.mark.parametrize("severity", ["error", "critical"])
async def test_grave_feedback_sends_the_workflow_through_all_phases_again(
    office: Office, severity: str
) -> None:
    await office.listen("w")
    office.agent("monitor").work = monitor({"severity": severity, "findings": ["slow"]})
    final = await office.engine().run_workflow(workflow("coding", "devops", "monitor"))
    assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 1)
    assert [(e["phase"], e.get("feedback_round", 0)) for e in final.phase_history] == [
        *(("development", 0), ("devops", 0), ("monitoring", 0)),
        *(("development", 1), ("devops", 1), ("monitoring", 1)),
    ]
    first, second = office.agent("coding").tasks
    assert "feedback" not in first.input_data
    assert second.task_id == "t-coding.feedback-1"
    assert second.input_data["feedback"]["findings"] == ["slow"]
    assert second.metadata["workflow_task_id"] == "t-coding"
    assert set(final.task_results) == {"t-coding", "t-devops", "t-monitor"}
    (heard,) = [m for m in office.messages if m.message_type is MessageType.FEEDBACK]
    assert FeedbackPayload.model_validate(heard.payload).severity == severity
    assert office.events.count("feedback") == 1


@pytest.mark.parametrize("severity", ["info", "warning"])
async def test_mild_feedback_lets_the_run_end(office: Office, severity: str) -> None:
    office.agent("monitor").work = monitor({"severity": severity})
    final = await office.engine().run_workflow(workflow("coding", "monitor"))
    assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 0)


async def test_feedback_that_does_not_end_ends_the_run_at_the_limit(office: Office) -> None:
    office.agent("monitor").work = monitor(*[{"severity": "error"}] * 9)
    final = await office.engine(max_feedback_loops=2).run_workflow(workflow("coding", "monitor"))
    assert (final.status, final.feedback_count) == (TaskStatus.FAILED, 2)
    assert final.error_log[-1]["error_code"] == "MAX_FEEDBACK_LOOPS"
    assert len(office.agent("coding").tasks) == 3


async def test_feedback_about_some_tasks_runs_all_of_development_again(office: Office) -> None:
    """Who is told of the affected tasks is the agents: what mends them is often another task's work."""
    office.agent("monitor").work = monitor({"severity": "error", "affected_task_ids": ["t-review"]})
    final = await office.engine().run_workflow(workflow("coding", "review", "monitor"))
    assert final.status is TaskStatus.COMPLETED
    for name in ("coding", "review"):
        assert [t.task_id for t in office.agent(name).tasks] == [f"t-{name}", f"t-{name}.feedback-1"]


async def test_what_is_no_feedback_is_noted_and_the_run_ends(office: Office) -> None:
    office.agent("monitor").work = monitor({"severity": 7})
    final = await office.engine().run_workflow(workflow("coding", "monitor"))
    assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 0)
    assert final.error_log[-1]["error_code"] == "INVALID_FEEDBACK"
    assert "severity" in final.error_log[-1]["message"]


async def test_a_workflow_without_development_is_not_sent_back(office: Office) -> None:
    office.agent("monitor").work = monitor({"severity": "error"})
    final = await office.engine().run_workflow(workflow("monitor", phases=["monitoring"]))
    assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 0)


async def test_a_feedback_round_goes_on_where_it_was(dying: DyingState) -> None:
    for saves in range(5, 14):
        async with staffed(dying) as coordinator:
            office = Office(coordinator)
            office.agent("monitor").work = monitor({"severity": "error", "findings": ["slow"]})
            definition = workflow("coding", "monitor", workflow_id=f"w{saves}")
            tasks = [t.model_copy(update={"task_id": f"{saves}-{t.name}"}) for t in definition.tasks]
            dying.saves_left = saves
            with pytest.raises(StateError):
                await office.engine().run_workflow(definition.model_copy(update={"tasks": tasks}))
            dying.saves_left = -1
            final = await office.engine().resume_workflow(definition.workflow_id)
            assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 1)
            assert len(final.phase_history) == 6
            suffixes = ("", ".feedback-1")
            assert office.ran() == sorted(f"{task.task_id}{suffix}" for task in tasks for suffix in suffixes)


async def test_inputs_that_json_cannot_hold_make_a_run_that_cannot_be_resumed(office: Office) -> None:
    definition = workflow("coding")
    definition.tasks[0].input_data["handle"] = object()
    final = await office.engine().run_workflow(definition)
    assert final.status is TaskStatus.COMPLETED
    assert "definition" not in final.metadata


async def test_on_event_is_called_with_what_happens_and_may_fail(office: Office) -> None:
    seen: list[str] = []

    def see(event: Any) -> None:
        seen.append(event.event)
        raise ValueError("no")

    office.agent("coding").work = succeed
    final = await office.engine(on_event=see).run_workflow(workflow("coding"))
    assert final.status is TaskStatus.COMPLETED
    assert "task_ended" in seen
