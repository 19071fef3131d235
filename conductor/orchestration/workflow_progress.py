"""Where a run is, as it is kept in the metadata of its WorkflowState."""

import logging
import re
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import PydanticSerializationError

from conductor.core.enums import WorkflowPhase
from conductor.core.exceptions import WorkflowError
from conductor.core.fields import UtcDatetime
from conductor.core.messages import FeedbackPayload
from conductor.core.models import StrictModel, TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState
from conductor.orchestration.workflow_inputs import Reference, resolve, split_name

logger = logging.getLogger(__name__)

DEFINITION, PROGRESS, OUTCOME = "definition", "progress", "outcome"
ROUND = "feedback_round"
_ROUND_SUFFIX = re.compile(r"\.feedback-\d+$")


class Progress(StrictModel):
    """The step a run is at; all that ended is in the state itself."""

    phase: WorkflowPhase | None = None
    """The phase that runs, or runs next; None when the run has only to be ended."""
    phase_started_at: UtcDatetime | None = None
    last_phase: WorkflowPhase | None = None
    """The phase to end with; None: the definition's last."""
    feedback: FeedbackPayload | None = None
    failed: bool = False
    engine: str = ""
    stop_on_failure: bool = False
    max_feedback_loops: int | None = None
    unannounced: list[dict[str, Any]] = Field(default_factory=list)
    """Events that are true since the last save of the whole, and may not have been published."""


def keep_definition(state: WorkflowState, definition: WorkflowDefinition) -> None:
    """Put the definition into the state; one that JSON cannot hold makes a run that cannot be resumed."""
    try:
        state.metadata[DEFINITION] = definition.model_dump(mode="json")
    except (PydanticSerializationError, UnicodeError, ValueError) as error:
        logger.warning("workflow %s could not be resumed: %s", definition.workflow_id, error)


def keep_progress(state: WorkflowState, progress: Progress) -> None:
    """Put the progress into the state."""
    state.metadata[PROGRESS] = progress.model_dump(mode="json", exclude_defaults=True)


def restore(state: WorkflowState) -> tuple[WorkflowDefinition, Progress]:
    """Read what a run consists of; WorkflowError, code WORKFLOW_NOT_RESUMABLE, if it is not there."""
    try:
        definition = WorkflowDefinition.model_validate(state.metadata[DEFINITION])
        progress = Progress.model_validate(state.metadata[PROGRESS])
    except (KeyError, ValidationError) as error:
        raise WorkflowError(
            f"Workflow {state.workflow_id} cannot be resumed: its state does not hold its definition.",
            state.workflow_id,
            "WORKFLOW_NOT_RESUMABLE",
        ) from error
    return definition, progress


def engine_of(state: WorkflowState) -> str | None:
    """Name the engine that ran the workflow last."""
    progress = state.metadata.get(PROGRESS)
    return progress.get("engine") if isinstance(progress, dict) else None


def is_same(one: WorkflowDefinition, other: WorkflowDefinition) -> bool:
    """Compare what was written, not the ids and times that are made up for every object."""

    def written(definition: WorkflowDefinition) -> dict[str, Any]:
        data = definition.model_dump(mode="json", exclude={"created_at"})
        numbers = {task.task_id: number for number, task in enumerate(definition.tasks)}

        def numbered(reference: Reference) -> str:
            found = split_name(reference.path, numbers) if reference.kind == "tasks" else None
            return f"{numbers[found[0]]} {found[1]}" if found else reference.text

        for task in data["tasks"]:
            del task["task_id"], task["created_at"]
            task["depends_on"] = [numbers.get(word, word) for word in task["depends_on"]]
            task["input_data"] = resolve(task["input_data"], numbered)
        return data

    try:
        return written(one) == written(other)
    except (PydanticSerializationError, UnicodeError, ValueError):
        return False


def ended(state: WorkflowState, task: TaskDefinition) -> bool:
    """Tell whether a task has ended in the feedback round that the run is in."""
    result = state.task_results.get(task.task_id)
    return result is not None and result.metadata.get(ROUND, 0) == state.feedback_count


def of_round(result: TaskResult, task: TaskDefinition, feedback_round: int) -> TaskResult:
    """Give a result under the id that the task has in the definition, and with its round."""
    metadata = result.metadata | ({ROUND: feedback_round} if feedback_round else {})
    return result.model_copy(update={"task_id": task.task_id, "metadata": metadata})


def id_in_round(task_id: str, feedback_round: int) -> str:
    """Name a task as it is dispatched: a result is kept by its task's id, so that every round has its own."""
    return f"{task_id}.feedback-{feedback_round}" if feedback_round else task_id


def id_in_definition(task_id: str) -> str:
    """Name a task as its definition does."""
    return _ROUND_SUFFIX.sub("", task_id)
