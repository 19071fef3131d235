"""The agent that judges a workflow."""

from typing import Any

from conductor.core.enums import AgentType
from conductor.core.messages import FeedbackPayload
from conductor.core.models import TaskDefinition
from conductor.core.state import WorkflowState
from workers.agents.failure import WorkFailedError
from workers.agents.inputs import text_input
from workers.agents.thresholds import THRESHOLDS, Measure
from workers.agents.work_agent import WorkAgent

DEFAULT_THRESHOLDS = {"max_failed_tasks": 0}
SEVERITIES = ("warning", "error", "critical")
SEVERITY, HEALTHY = "error", "info"


class MonitorAgent(WorkAgent):
    """Reads the results and the agents' states of a workflow, checks them and gives feedback.

    Input: `workflow_id` (default: the one in the task's metadata), `thresholds` (names to limits:
    max_findings, max_complexity, min_tests_passed, max_tests_failed, max_failed_tasks, max_failed_agents,
    min_success_rate of 0 to 1, max_duration_seconds; default: max_failed_tasks 0) and `severity` of a crossed
    threshold (error; or warning, critical). A value equal to its limit does not cross it.

    Output: `healthy`, `workflow_id`, and `feedback`, a FeedbackPayload: a finding and a recommendation for
    each crossed threshold, the tasks it comes from, and everything measured under `metrics`; its severity is
    info where nothing is crossed. A bad judgement is a COMPLETED task. One that cannot be made, since no
    result has what a threshold is about, is a FAILED one.
    """

    agent_type_served = AgentType.MONITOR
    inputs = ("workflow_id", "thresholds", "severity")

    async def _do(self, task: TaskDefinition) -> dict[str, Any]:
        data = task.input_data
        thresholds, severity = _thresholds(data), _severity(data)
        workflow_id = text_input(data, "workflow_id") or text_input(task.metadata, "workflow_id")
        if workflow_id is None:
            raise WorkFailedError("the task has no 'workflow_id', neither in its input nor in its metadata")
        state = await self.state_manager.get_workflow_state(workflow_id)
        if state is None:
            raise WorkFailedError(
                f"there is no workflow {workflow_id!r} in the state manager: it has expired, or the task's "
                "input 'workflow_id' is wrong"
            )
        feedback = self._judge(state, thresholds, severity)
        return {
            "healthy": not feedback.findings,
            "workflow_id": workflow_id,
            "feedback": feedback.model_dump(mode="json"),
        }

    def _judge(self, state: WorkflowState, thresholds: dict[str, float], severity: str) -> FeedbackPayload:
        measures = {name: threshold.measure(state) for name, threshold in THRESHOLDS.items()}
        feedback = FeedbackPayload(source_agent_id=self.agent_id, severity=HEALTHY)
        feedback.metrics = {
            name.partition("_")[2]: measure.value for name, measure in measures.items() if measure is not None
        }
        for name, limit in thresholds.items():
            threshold, measure = THRESHOLDS[name], _require(measures[name], name, state)
            if not threshold.is_crossed(measure.value, limit):
                continue
            side = "less" if threshold.least else "more"
            feedback.severity = severity
            feedback.findings.append(f"{threshold.what}: {measure.value:g}, {side} than {limit:g} ({name})")
            feedback.recommendations.append(measure.advice)
            known = feedback.affected_task_ids
            known += [task_id for task_id in measure.task_ids if task_id not in known]
        return feedback


def _require(measure: Measure | None, name: str, state: WorkflowState) -> Measure:
    if measure is None:
        raise WorkFailedError(
            f"the threshold '{name}' cannot be checked: no result of workflow {state.workflow_id} tells, "
            f"as that of {THRESHOLDS[name].source} does"
        )
    return measure


def _thresholds(data: dict[str, Any]) -> dict[str, float]:
    given = data.get("thresholds", DEFAULT_THRESHOLDS)
    if not isinstance(given, dict) or not given:
        raise WorkFailedError(f"the task's input 'thresholds' must map names to limits; it is {given!r}")
    unknown = [name for name in given if name not in THRESHOLDS]
    if unknown:
        raise WorkFailedError(
            f"there is no threshold {', '.join(map(repr, unknown))}; known: {', '.join(THRESHOLDS)}"
        )
    for name, limit in given.items():
        THRESHOLDS[name].require_valid(name, limit)
    return given


def _severity(data: dict[str, Any]) -> str:
    severity = text_input(data, "severity") or SEVERITY
    if severity not in SEVERITIES:
        raise WorkFailedError(
            f"the task's input 'severity' must be one of {', '.join(SEVERITIES)}, not {severity!r}"
        )
    return severity
