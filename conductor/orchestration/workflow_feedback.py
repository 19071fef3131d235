"""Feedback of monitor agents, and what it asks of a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pydantic import ValidationError

from conductor.core.enums import AgentType, WorkflowPhase
from conductor.core.exceptions import WorkflowError
from conductor.core.messages import FeedbackPayload
from conductor.orchestration.workflow_progress import ended

if TYPE_CHECKING:
    from conductor.core.models import TaskDefinition
    from conductor.orchestration.workflow_ledger import Ledger

logger = logging.getLogger(__name__)

#: The severities that send a workflow back, the worst first.
GRAVE = ("critical", "error")
SEVERITIES = (*GRAVE, "warning", "info")


def grave_feedback(ledger: Ledger, tasks: list[TaskDefinition]) -> FeedbackPayload | None:
    """Give the worst feedback that monitor tasks have given in this round, None if nothing has to be mended.

    What is no feedback is noted in the error_log, code INVALID_FEEDBACK.
    """
    found: list[FeedbackPayload] = []
    for task in tasks:
        if task.assigned_to is not AgentType.MONITOR or not ended(ledger.state, task):
            continue
        output = ledger.state.task_results[task.task_id].output_data
        # An agent may give it as its output, or beside other things.
        given = output if output.keys() >= {"source_agent_id", "severity"} else output.get("feedback")
        if given is None:
            continue
        try:
            found.append(_read(given))
        except ValueError as error:
            problem = f"The feedback of task {task.name!r} cannot be used: {error}."
            ledger.log(WorkflowError(problem, ledger.state.workflow_id, "INVALID_FEEDBACK"))
            logger.warning("workflow %s: %s", ledger.state.workflow_id, problem)
    grave = [feedback for feedback in found if feedback.severity in GRAVE]
    return min(grave, key=lambda feedback: GRAVE.index(feedback.severity), default=None)


def _read(given: object) -> FeedbackPayload:
    try:
        feedback = FeedbackPayload.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    severity = feedback.severity.lower()
    if severity not in SEVERITIES:
        raise ValueError(f"severity: {feedback.severity!r} is none of {', '.join(SEVERITIES)}")
    return feedback.model_copy(update={"severity": severity})


def begin_round(ledger: Ledger, feedback: FeedbackPayload) -> None:
    """Put the run back to DEVELOPMENT; it is done when saved."""
    ledger.state.feedback_count += 1
    progress = ledger.progress
    progress.feedback = feedback
    progress.phase, progress.phase_started_at = WorkflowPhase.DEVELOPMENT, None


def loops_used_up(workflow_id: str, count: int, limit: int) -> WorkflowError:
    """Make the error of a workflow that may not be sent back once more."""
    return WorkflowError(
        f"Workflow {workflow_id} had all its feedback loops ({limit}).",
        workflow_id,
        "MAX_FEEDBACK_LOOPS",
        {"feedback_count": count, "max_feedback_loops": limit},
    )
