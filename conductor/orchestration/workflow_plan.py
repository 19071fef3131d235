"""What a workflow's definition means: which task runs in which phase, and after which others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from conductor.core.enums import AgentType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import WorkflowError
from conductor.orchestration.workflow_inputs import look_up, references, resolve, slips, split_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
    from conductor.orchestration.workflow_inputs import Reference

PHASE_AGENT_TYPES: dict[WorkflowPhase, list[AgentType]] = {
    WorkflowPhase.DEVELOPMENT: [AgentType.CODING, AgentType.REVIEW, AgentType.TEST_DATA, AgentType.TEST],
    WorkflowPhase.DEVOPS: [AgentType.DEVOPS, AgentType.DEPLOYING],
    WorkflowPhase.MONITORING: [AgentType.MONITOR],
}
"""The types of agents whose tasks run in each phase."""


@dataclass(frozen=True)
class Need:
    """A task that another one needs, and the field that says so."""

    task: TaskDefinition
    field: str


class Plan:
    """A definition that was found to make sense.

    Raises WorkflowError, code INVALID_WORKFLOW, with the task and its field in the details: for an unknown or
    ambiguous name, for a task that needs a later one or itself, for a cycle, for an unknown variable.
    """

    def __init__(self, definition: WorkflowDefinition) -> None:
        self.definition = definition
        self._by_id = {task.task_id: task for task in definition.tasks}
        self._names = Counter(task.name for task in definition.tasks)
        self._by_name = {task.name: task for task in definition.tasks}
        self._numbers = {task_id: number for number, task_id in enumerate(self._by_id)}
        for phase, count in Counter(definition.phases).items():
            if count > 1:
                self._fail(None, "phases", f"phase {phase} is named {count} times")
        self._tasks = {phase: self._tasks_in(phase) for phase in definition.phases}
        self._graphs = {p for p, tasks in self._tasks.items() if any(task.depends_on for task in tasks)}
        self._phase_of = {task.task_id: phase for phase, tasks in self._tasks.items() for task in tasks}
        self._needs = {task.task_id: self._needs_of(task) for task in definition.tasks}
        for phase in definition.phases:
            self._refuse_cycles(phase)

    def tasks_of(self, phase: WorkflowPhase) -> list[TaskDefinition]:
        """Give the tasks of a phase as listed; one without an agent type is in the first."""
        return self._tasks[phase] if phase in self._tasks else self._tasks_in(phase)

    def is_graph(self, phase: WorkflowPhase) -> bool:
        """Tell whether any task of the phase has dependencies: then all run at once that may."""
        return phase in self._graphs

    def phase_of(self, task: TaskDefinition) -> WorkflowPhase | None:
        """Give the phase in which a task runs, None if it never does."""
        return self._phase_of.get(task.task_id)

    def needs(self, task: TaskDefinition) -> list[TaskDefinition]:
        """Give the tasks that have to be completed before: those named, and those referred to."""
        return [need.task for need in self._needs[task.task_id]]

    def inputs(self, task: TaskDefinition, results: Mapping[str, TaskResult]) -> dict[str, Any]:
        """Give a task's inputs with values for references; WorkflowError, code MISSING_OUTPUT."""

        def replace(reference: Reference) -> Any:
            if reference.kind == "vars":
                return self.definition.variables[reference.path]
            other, path = self._referred(task, reference)
            return look_up(reference, path, other, results[other.task_id], self.definition.workflow_id)

        inputs: dict[str, Any] = resolve(task.input_data, replace)
        return inputs

    def obstacle(self, task: TaskDefinition, results: Mapping[str, TaskResult]) -> str | None:
        """Say which task that this one needs did not complete; None if all did."""
        for other in self.needs(task):
            result = results.get(other.task_id)
            if result is None or result.status is not TaskStatus.COMPLETED:
                ending = "was not run" if result is None else f"ended as {result.status.value}"
                return f"It needs task {other.name!r} ({other.task_id}), which {ending}."
        return None

    def _tasks_in(self, phase: WorkflowPhase) -> list[TaskDefinition]:
        types: set[AgentType | None] = set(PHASE_AGENT_TYPES[phase])
        if self.definition.phases and phase is self.definition.phases[0]:
            types.add(None)
        return [task for task in self.definition.tasks if task.assigned_to in types]

    def _needs_of(self, task: TaskDefinition) -> list[Need]:
        needs = [
            Need(self._named(task, word, f"depends_on[{number}]"), f"depends_on[{number}]")
            for number, word in enumerate(task.depends_on)
        ]
        for field, problem in slips(task.input_data):
            self._fail(task, field, problem)
        for reference in references(task):
            if reference.kind == "tasks":
                needs.append(Need(self._referred(task, reference)[0], reference.field))
            elif reference.path not in self.definition.variables:
                known = ", ".join(map(repr, self.definition.variables)) or "none"
                self._fail(task, reference.field, f"{reference.text} is unknown; there are: {known}")
        for need in needs:
            self._check_order(task, need)
        return list({need.task.task_id: need for need in needs}.values())

    def _named(self, task: TaskDefinition, word: str, field: str) -> TaskDefinition:
        if word in self._by_id:
            return self._by_id[word]
        if self._names[word] > 1:
            self._fail(task, field, f"{self._names[word]} tasks have the name {word!r}; use a task_id")
        if word not in self._by_name:
            known = ", ".join(map(repr, self._names))
            self._fail(task, field, f"there is no task {word!r}; there are {known}")
        return self._by_name[word]

    def _referred(self, task: TaskDefinition, reference: Reference) -> tuple[TaskDefinition, str]:
        found = split_name(reference.path, self._by_name | self._by_id)
        if found is None:
            known = ", ".join(map(repr, self._names))
            self._fail(task, reference.field, f"{reference.text} names no task; there are {known}")
        return self._named(task, found[0], reference.field), found[1]

    def _check_order(self, task: TaskDefinition, need: Need) -> None:
        mine, its = self._phase_of.get(task.task_id), self._phase_of.get(need.task.task_id)
        if need.task is task:
            self._fail(task, need.field, f"task {task.name!r} needs itself")
        if mine is None:
            return
        if its is None:
            self._fail(task, need.field, f"task {need.task.name!r} is in none of the workflow's phases")
        order = self.definition.phases.index
        if order(its) > order(mine):
            self._fail(
                task,
                need.field,
                f"task {need.task.name!r} is in phase {its}, which comes after {mine} of task {task.name!r}",
            )
        listed_later = self._numbers[need.task.task_id] > self._numbers[task.task_id]
        if its is mine and listed_later and not self.is_graph(mine):
            self._fail(
                task,
                need.field,
                f"task {need.task.name!r} is listed after {task.name!r}; list it before or use depends_on",
            )

    def _refuse_cycles(self, phase: WorkflowPhase) -> None:
        done: set[str] = set()
        for start in self.tasks_of(phase):
            way: dict[str, TaskDefinition] = {}
            ahead = [iter([start])]
            while ahead:
                task = next(ahead[-1], None)
                if task is None:
                    ahead.pop()
                    done.update([way.popitem()[0]] if way else ())
                elif task.task_id in way:
                    names = [passed.name for passed in way.values()]
                    cycle = [*names[list(way).index(task.task_id) :], task.name]
                    self._fail(task, "depends_on", f"tasks need each other: {' -> '.join(cycle)}")
                elif task.task_id not in done:
                    way[task.task_id] = task
                    ahead.append(iter(self.needs(task)))

    def _fail(self, task: TaskDefinition | None, field: str, problem: str) -> NoReturn:
        where = f"task {task.name!r}: {field}: " if task else f"{field}: "
        raise WorkflowError(
            f"Workflow {self.definition.name!r} cannot be run: {where}{problem}.",
            self.definition.workflow_id,
            "INVALID_WORKFLOW",
            {
                "task_id": task.task_id if task else None,
                "task_name": task.name if task else None,
                "task_number": self._numbers[task.task_id] if task else None,
                "field": field,
                "problem": problem,
            },
        )
