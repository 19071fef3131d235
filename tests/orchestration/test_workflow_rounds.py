"""Feedback rounds: what counts in them, how they end, and what feedback may look like."""

import asyncio
from typing import Any

import pytest

from conductor.core.enums import TaskStatus
from conductor.core.exceptions import StateError
from conductor.core.messages import FeedbackPayload
from conductor.core.models import TaskDefinition, TaskResult
from tests.support.office import DyingState, Office, gate, monitor, staffed, workflow
from tests.support.scripted_agent import ScriptedAgent

GRAVE = {"severity": "error", "findings": ["slow"]}


def in_round(number: int, then: Any) -> Any:
    """Succeed, and in one feedback round do something else."""

    async def work(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        if task.task_id.endswith(f".feedback-{number}"):
            return await then(agent, task)  # type: ignore[no-any-return]
        return agent.result(task)

    return work


async def fail(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
    return agent.result(task, TaskStatus.FAILED)


async def test_a_gate_counts_what_ended_in_its_round(office: Office) -> None:
    office.agent("monitor").work = monitor(GRAVE)
    office.agent("review").work = in_round(1, fail)
    definition = workflow("coding", "review", "devops", "deploying", "monitor")
    final = await office.engine(policy_engine=gate(0.7)).run_workflow(definition)
    assert (final.status, final.feedback_count) == (TaskStatus.FAILED, 1)
    assert final.error_log[-1]["error_code"] == "PHASE_GATE_CLOSED"
    assert "50%" in final.error_log[-1]["message"]
    assert not any(one.startswith("t-devops.") for one in office.ran())


async def test_cancelled_in_a_round_no_task_keeps_the_result_of_the_round_before(office: Office) -> None:
    await office.listen("w")
    office.agent("monitor").work = monitor(GRAVE)
    office.agent("review").work = in_round(1, office.never_end)
    running = asyncio.create_task(office.engine().run_workflow(workflow("coding", "review", "monitor")))
    await office.begun.wait()
    await office.engine().cancel_workflow("w")
    final = await running
    assert {name: result.status.value for name, result in final.task_results.items()} == {
        "t-coding": "completed",
        "t-review": "skipped",
        "t-monitor": "completed",
    }
    assert office.events[-3:] == ["task_ended", "phase_ended", "workflow_ended"]
    (entry,) = [one for one in final.phase_history if one["result"] == "cancelled"]
    assert (entry["phase"], entry["feedback_round"], entry["completed_count"]) == ("development", 1, 1)


async def test_a_run_whose_time_is_over_ends_its_phase(office: Office) -> None:
    await office.listen("w")
    office.agent("review").work = office.never_end
    definition = workflow("coding", "review", timeout_seconds=0.3)
    final = await office.engine().run_workflow(definition)
    assert office.events[-3:] == ["task_ended", "phase_ended", "workflow_ended"]
    assert [(one["phase"], one["result"]) for one in final.phase_history] == [("development", "failed")]


def judging(*outputs: dict[str, Any]) -> Any:
    left = list(outputs)

    async def work(agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        return agent._create_result(task.task_id, TaskStatus.COMPLETED, left.pop(0) if left else {})

    return work


@pytest.mark.parametrize("severity", ["critical", "CRITICAL", "Error"])
async def test_a_monitor_may_give_feedback_as_its_output(office: Office, severity: str) -> None:
    feedback = FeedbackPayload(source_agent_id="monitor", severity=severity, findings=["slow"])
    office.agent("monitor").work = judging(feedback.model_dump(mode="json"))
    final = await office.engine().run_workflow(workflow("coding", "monitor"))
    assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 1)
    again = office.agent("coding").tasks[1]
    assert again.input_data["feedback"]["findings"] == ["slow"]


async def test_an_unknown_severity_is_noted(office: Office) -> None:
    office.agent("monitor").work = judging({"source_agent_id": "monitor", "severity": "awful"})
    final = await office.engine().run_workflow(workflow("coding", "monitor"))
    assert (final.status, final.feedback_count) == (TaskStatus.COMPLETED, 0)
    assert final.error_log[-1]["error_code"] == "INVALID_FEEDBACK"
    assert "'awful' is none of critical, error, warning, info" in final.error_log[-1]["message"]


async def test_the_limit_of_loops_is_kept_for_whoever_resumes_the_run(dying: DyingState) -> None:
    async with staffed(dying) as coordinator:
        office = Office(coordinator)
        office.agent("monitor").work = monitor(GRAVE, GRAVE, GRAVE)
        dying.saves_left = 3
        with pytest.raises(StateError):
            await office.engine(max_feedback_loops=1).run_workflow(workflow("coding", "monitor"))
        dying.saves_left = -1
        final = await office.engine().resume_workflow("w")
        assert (final.status, final.feedback_count) == (TaskStatus.FAILED, 1)
        assert final.error_log[-1]["error_code"] == "MAX_FEEDBACK_LOOPS"
