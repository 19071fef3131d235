"""The monitor judges the results of a workflow and gives feedback."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.exceptions import AgentError
from conductor.core.fields import utc_now
from conductor.core.messages import FeedbackPayload
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import AgentState, WorkflowState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.support.projects import make_project
from workers.agents import AGENTS

REVIEW = {
    "findings_total": 12,
    "by_code": {"E501": 3, "F841": 8, "complexity": 1},
    "complexity": {"maximum": 18, "over": [{"function": "cost"}]},
}
TESTS = {"passed": 21, "failed": 2, "errors": 1, "skipped": 4}
RESULTS = {
    "code": (TaskStatus.COMPLETED, {"remaining": 11}),
    "review": (TaskStatus.COMPLETED, REVIEW),
    "test": (TaskStatus.FAILED, TESTS),
}


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[AgentCoordinator]:
    coordinator = AgentCoordinator(InMemoryMessageBus(), InMemoryStateManager())
    await coordinator.start()
    for name in ("coding", "review", "monitor"):
        await coordinator.register_agent(
            AGENTS[name](f"{name}-1", ConductorConfig(data_dir=tmp_path / "data"))
        )
    yield coordinator
    await coordinator.stop()


async def judge(
    coordinator: AgentCoordinator, metadata: dict[str, Any] | None = None, **input_data: Any
) -> TaskResult:
    task = TaskDefinition(
        name="judge", assigned_to=AgentType.MONITOR, input_data=input_data, metadata=metadata or {}
    )
    return await coordinator.dispatch_task(task)


async def save(coordinator: AgentCoordinator, names: tuple[str, ...] = tuple(RESULTS)) -> None:
    results = {}
    for seconds, name in enumerate(names):
        status, output = RESULTS[name]
        results[name] = TaskResult(
            task_id=name, agent_id="a", status=status, output_data=output, duration_seconds=seconds
        )
    state = WorkflowState(workflow_id="w", status=TaskStatus.IN_PROGRESS, task_results=results)
    state.started_at = utc_now() - timedelta(seconds=100)
    broken = AgentState(agent_id="a", agent_type=AgentType.TEST, status=AgentStatus.FAILED)
    state.agent_states = {"a": broken, "b": AgentState(agent_id="b", agent_type=AgentType.TEST)}
    await coordinator.state_manager.save_workflow_state(state)


async def feedback_of(result: TaskResult) -> FeedbackPayload:
    assert result.status is TaskStatus.COMPLETED, result.error_message
    feedback = FeedbackPayload.model_validate(result.output_data["feedback"])
    assert result.output_data["healthy"] is (not feedback.findings)
    assert result.output_data["healthy"] is (feedback.severity == "info")
    return feedback


@pytest.mark.parametrize(
    ("name", "limit", "crossing", "finding", "affected"),
    [
        ("max_findings", 12, 11, "findings: 12, more than 11", ["review"]),
        ("max_complexity", 18, 17, "complexity of a function: 18, more than 17", ["review"]),
        ("min_tests_passed", 21, 22, "tests passed: 21, less than 22", ["test"]),
        ("max_tests_failed", 3, 2, "tests failed: 3, more than 2", ["test"]),
        ("max_failed_tasks", 1, 0, "failed tasks: 1, more than 0", ["test"]),
        ("max_failed_agents", 1, 0, "failed agents: 1, more than 0", ["code", "review", "test"]),
        ("min_success_rate", 0.6, 0.7, "share of tasks completed: 0.666667, less than 0.7", ["test"]),
        ("max_duration_seconds", 3600, 99.5, "seconds: ", ["test"]),
    ],
)
async def test_a_threshold_is_crossed_past_its_limit_and_not_at_it(
    name: str,
    limit: float,
    crossing: float,
    finding: str,
    affected: list[str],
    coordinator: AgentCoordinator,
) -> None:
    await save(coordinator)
    good = await feedback_of(await judge(coordinator, workflow_id="w", thresholds={name: limit}))
    assert (good.findings, good.severity, good.affected_task_ids) == ([], "info", [])
    bad = await feedback_of(await judge(coordinator, workflow_id="w", thresholds={name: crossing}))
    assert (len(bad.findings), len(bad.recommendations), bad.severity) == (1, 1, "error")
    assert bad.findings[0].startswith(finding)
    assert bad.findings[0].endswith(f"({name})")
    assert bad.affected_task_ids == affected
    assert bad.source_agent_id == "monitor-1"


async def test_the_feedback_tells_all_that_was_measured_and_what_to_do(coordinator: AgentCoordinator) -> None:
    await save(coordinator)
    thresholds = {"max_findings": 0, "max_complexity": 10, "max_failed_tasks": 0}
    feedback = await feedback_of(await judge(coordinator, workflow_id="w", thresholds=thresholds))
    seconds = feedback.metrics.pop("duration_seconds")
    assert 100 <= seconds < 3600
    rate = feedback.metrics.pop("success_rate")
    assert rate == pytest.approx(2 / 3)
    assert feedback.metrics == {
        "findings": 12,
        "complexity": 18,
        "tests_passed": 21,
        "tests_failed": 3,
        "failed_tasks": 1,
        "failed_agents": 1,
    }
    assert feedback.recommendations == [
        "mend the findings, first F841 (8), E501 (3), complexity (1)",
        "simplify cost",
        "see why the failed tasks failed",
    ]
    assert feedback.affected_task_ids == ["review", "test"]


async def test_without_thresholds_no_task_may_fail(coordinator: AgentCoordinator) -> None:
    await save(coordinator)
    assert (await judge(coordinator, workflow_id="w")).output_data["healthy"] is False
    await save(coordinator, ("code", "review"))
    assert (await judge(coordinator, workflow_id="w")).output_data["healthy"] is True


async def test_the_severity_of_a_crossed_threshold_is_the_tasks(coordinator: AgentCoordinator) -> None:
    await save(coordinator)
    for severity in ("warning", "critical"):
        feedback = await feedback_of(await judge(coordinator, workflow_id="w", severity=severity))
        assert feedback.severity == severity


async def test_the_workflow_may_be_named_by_the_tasks_metadata(coordinator: AgentCoordinator) -> None:
    await save(coordinator)
    result = await judge(coordinator, {"workflow_id": "w"})
    assert result.output_data["workflow_id"] == "w"
    result = await judge(coordinator, {"workflow_id": "w"}, workflow_id="other")
    assert "there is no workflow 'other' in the state manager" in (result.error_message or "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workflow_id": None}, "the task has no 'workflow_id', neither in its input nor in its metadata"),
        ({"thresholds": {"max_finding": 1}}, "there is no threshold 'max_finding'; known: max_findings, "),
        ({"thresholds": []}, "'thresholds' must map names to limits; it is []"),
        *(
            ({"thresholds": {"max_findings": bad}}, f"must be a whole number of at least 0, not {bad!r}")
            for bad in ("8", True, 1.5, -1, float("nan"), None)
        ),
        (
            {"thresholds": {"min_success_rate": 80}},
            "'min_success_rate' must be a number of at least 0 and at most 1, not 80",
        ),
        ({"severity": "info"}, "'severity' must be one of warning, error, critical, not 'info'"),
    ],
)
async def test_a_wrong_input_is_named(
    given: dict[str, Any], said: str, coordinator: AgentCoordinator
) -> None:
    await save(coordinator)
    result = await judge(coordinator, **{"workflow_id": "w", **given})
    assert result.status is TaskStatus.FAILED
    assert said in (result.error_message or "")


async def test_what_no_result_tells_cannot_be_judged(coordinator: AgentCoordinator) -> None:
    await save(coordinator, ("code",))
    result = await judge(coordinator, workflow_id="w", thresholds={"max_findings": 3})
    assert result.status is TaskStatus.FAILED
    assert result.error_message == (
        "the threshold 'max_findings' cannot be checked: no result of workflow w tells, as that of a review "
        "task does"
    )


async def test_a_monitor_that_nobody_hosts_says_so(tmp_path: Path) -> None:
    agent = AGENTS["monitor"]("alone", ConductorConfig(data_dir=tmp_path))
    with pytest.raises(AgentError) as caught:
        await agent.execute_task(TaskDefinition(name="judge", input_data={"workflow_id": "w"}))
    assert caught.value.error_code == "NOT_HOSTED"


async def test_its_feedback_has_development_mend_what_it_found(
    coordinator: AgentCoordinator, tmp_path: Path
) -> None:
    unsafe = "def odd(numbers):\n    unused = 1\n    return [n for n in numbers if n % 2 == True]\n"
    project = make_project(tmp_path / "project", {"demo/odd.py": unsafe})
    data = {"project": str(project), "workspace": str(tmp_path / "workspace")}
    kinds = (AgentType.CODING, AgentType.REVIEW)
    tasks = [TaskDefinition(task_id=kind, name=kind, assigned_to=kind, input_data=data) for kind in kinds]
    definition = WorkflowDefinition(name="polish", tasks=tasks)
    engine = WorkflowEngine(coordinator, coordinator.state_manager)
    state = await engine.run_workflow(definition)
    wanted: dict[str, Any] = {"workflow_id": definition.workflow_id, "thresholds": {"max_findings": 0}}
    first = await judge(coordinator, **wanted)
    assert first.output_data["feedback"]["metrics"]["findings"] == 2
    state = await engine.trigger_feedback_loop(state, definition, await feedback_of(first))
    assert state.task_results[AgentType.CODING].output_data["unsafe_fixes"] == 2
    assert (await judge(coordinator, **wanted)).output_data["healthy"] is True
