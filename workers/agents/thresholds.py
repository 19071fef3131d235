"""What a workflow's results amount to, and the limits that may be set to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conductor.core.enums import AgentStatus, TaskStatus
from conductor.core.fields import utc_now
from conductor.core.models import TaskResult
from conductor.core.state import WorkflowState
from workers.agents.failure import WorkFailedError

CODES_SHOWN = 5


@dataclass(frozen=True)
class Measure:
    """A number, the tasks it comes from, and what to do about it when it is not good enough."""

    value: float
    task_ids: list[str] = field(default_factory=list)
    advice: str = ""


@dataclass(frozen=True)
class Threshold:
    """A limit by the name that tasks use for it; `measure` is None where the results say nothing of it."""

    measure: Callable[[WorkflowState], Measure | None]
    what: str
    source: str
    least: bool = False
    whole: bool = True
    most: float | None = None

    def is_crossed(self, value: float, limit: float) -> bool:
        """Whether a value is on the wrong side of the limit."""
        return value < limit if self.least else value > limit

    def require_valid(self, name: str, limit: Any) -> None:
        """Raise WorkFailedError unless this can be a limit."""
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        in_range = number and 0 <= limit < float("inf") and (self.most is None or limit <= self.most)
        if in_range and not (self.whole and limit != int(limit)):
            return
        kind = "a whole number of at least 0" if self.whole else "a number of at least 0"
        upper = f" and at most {self.most:g}" if self.most is not None else ""
        raise WorkFailedError(f"the threshold '{name}' must be {kind}{upper}, not {limit!r}")


def _findings(state: WorkflowState) -> Measure | None:
    results = _with(state, "findings_total")
    codes: dict[str, int] = {}
    for result in results:
        for code, count in result.output_data.get("by_code", {}).items():
            codes[code] = codes.get(code, 0) + count
    shown = sorted(codes.items(), key=lambda item: (-item[1], item[0]))[:CODES_SHOWN]
    advice = f"mend the findings, first {', '.join(f'{code} ({n})' for code, n in shown)}" if shown else ""
    return _sum(results, "findings_total", advice)


def _complexity(state: WorkflowState) -> Measure | None:
    reviews = [r for r in _with(state, "complexity", dict) if "maximum" in r.output_data["complexity"]]
    if not reviews:
        return None
    worst = max(reviews, key=lambda result: result.output_data["complexity"]["maximum"])
    names = [over["function"] for over in worst.output_data["complexity"].get("over", [])[:CODES_SHOWN]]
    advice = f"simplify {', '.join(names)}" if names else "simplify the most complex function"
    return Measure(worst.output_data["complexity"]["maximum"], [worst.task_id], advice)


def _tests_passed(state: WorkflowState) -> Measure | None:
    return _sum(_test_results(state), "passed", "write tests, or mend those that fail")


def _tests_failed(state: WorkflowState) -> Measure | None:
    failed = _sum(_test_results(state), "failed", "mend the failing tests")
    errors = _sum(_test_results(state), "errors", "")
    if failed is None or errors is None:
        return failed
    return Measure(failed.value + errors.value, failed.task_ids, failed.advice)


def _failed_tasks(state: WorkflowState) -> Measure:
    failed = [r.task_id for r in state.task_results.values() if r.status is TaskStatus.FAILED]
    return Measure(len(failed), failed, "see why the failed tasks failed")


def _failed_agents(state: WorkflowState) -> Measure:
    failed = {a.agent_id: a for a in state.agent_states.values() if a.status is AgentStatus.FAILED}
    ids = [result.task_id for result in state.task_results.values() if result.agent_id in failed]
    return Measure(len(failed), ids, f"see why {', '.join(failed)} failed, and start them again")


def _success_rate(state: WorkflowState) -> Measure:
    done, failed = state.completed_task_count, _failed_tasks(state)
    total = done + failed.value
    return Measure(done / total if total else 1.0, failed.task_ids, failed.advice)


def _duration(state: WorkflowState) -> Measure:
    seconds = state.duration_seconds
    if seconds is None:
        seconds = (utc_now() - state.started_at).total_seconds()
    slowest = max(state.task_results.values(), key=lambda r: r.duration_seconds or 0.0, default=None)
    ids = [slowest.task_id] if slowest else []
    return Measure(round(seconds, 3), ids, "make the slowest task quicker")


def _test_results(state: WorkflowState) -> list[TaskResult]:
    return [result for result in _with(state, "passed") if "failed" in result.output_data]


def _with(state: WorkflowState, name: str, kind: type = int) -> list[TaskResult]:
    return [r for r in state.task_results.values() if isinstance(r.output_data.get(name), kind)]


def _sum(results: list[TaskResult], name: str, advice: str) -> Measure | None:
    found = {r.task_id: r.output_data[name] for r in results if isinstance(r.output_data.get(name), int)}
    return Measure(sum(found.values()), list(found), advice) if found else None


THRESHOLDS: dict[str, Threshold] = {
    "max_findings": Threshold(_findings, "findings", "a review task"),
    "max_complexity": Threshold(_complexity, "complexity of a function", "a review task"),
    "min_tests_passed": Threshold(_tests_passed, "tests passed", "a test task", least=True),
    "max_tests_failed": Threshold(_tests_failed, "tests failed", "a test task"),
    "max_failed_tasks": Threshold(_failed_tasks, "failed tasks", "a task"),
    "max_failed_agents": Threshold(_failed_agents, "failed agents", "a task"),
    "min_success_rate": Threshold(
        _success_rate, "share of tasks completed", "a task", least=True, whole=False, most=1
    ),
    "max_duration_seconds": Threshold(_duration, "seconds", "a task", whole=False),
}
