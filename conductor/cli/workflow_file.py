"""Reading a workflow from YAML; every error names the file, the field and the value."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from conductor.cli.values import absolute_paths
from conductor.core.enums import AgentType, WorkflowPhase
from conductor.core.exceptions import ConfigurationError, WorkflowError
from conductor.core.fields import new_id
from conductor.core.models import TaskDefinition, WorkflowDefinition
from conductor.core.wording import did_you_mean
from conductor.orchestration.workflow_inputs import formatted
from conductor.orchestration.workflow_plan import PHASE_AGENT_TYPES, Plan

REFERENCE = re.compile(r"\$\{(?:vars\.([^}]*)|([^}]*))\}")
IN_INPUTS = re.compile(r"tasks\[\d+\]\.input_data[.\[]")
OF_THE_RUN = {"workflow_id", "created_at", "task_id"}


@dataclass(frozen=True)
class Workflow:
    """A workflow ready to run, the directory its tasks share and the phase of each task."""

    definition: WorkflowDefinition
    workspace: Path
    phases: dict[str, WorkflowPhase]

    @property
    def ordered_tasks(self) -> list[TaskDefinition]:
        """The tasks in the order in which they run."""
        order = list(self.definition.phases)
        return sorted(self.definition.tasks, key=lambda task: order.index(self.phases[task.task_id]))

    @classmethod
    def of(cls, definition: WorkflowDefinition, workspaces: Path) -> Self:
        """Give the workflow of a run that was saved."""
        workspace = definition.variables.get("workspace") or workspaces / definition.workflow_id
        phases = {
            task.task_id: next(
                (phase for phase in definition.phases if task.assigned_to in PHASE_AGENT_TYPES[phase]),
                definition.phases[0],
            )
            for task in definition.tasks
        }
        return cls(definition, Path(workspace), phases)


def load_workflow(
    file: Path, given: Mapping[str, Any], workspaces: Path, workflow_id: str | None = None
) -> Workflow:
    """Read a workflow and put `given` variables, over those of the file, in place of ${vars.NAME}.

    Paths in the file are relative to it, those in `given` to the working directory. `${vars.workspace}`
    is a directory of this run below `workspaces`; the run has a new id unless it is given one. Raises
    ConfigurationError, code WORKFLOW_FILE, for anything wrong.
    """
    return _Loader(file).load(given, workspaces, workflow_id or new_id())


class _Loader:
    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self, given: Mapping[str, Any], workspaces: Path, workflow_id: str) -> Workflow:
        data = self._read()
        if "variables" in data:
            self._fail("variables", "in a file they are called 'vars'")
        workspace = workspaces.absolute() / workflow_id
        variables = self._variables(data.pop("vars", None) or {}, given, workspace)
        self._require_known(data, WorkflowDefinition, "")
        tasks = data.get("tasks")
        for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
            if isinstance(task, dict):
                self._require_known(task, TaskDefinition, f"tasks[{number}].")
        data = self._substitute(data, variables, "")
        self._require_shape(data)
        data["tasks"] = [self._with_absolute_paths(task) for task in data["tasks"]]
        known = {name: value for name, value in variables.items() if value is not None}
        try:
            definition = WorkflowDefinition.model_validate(
                {**data, "workflow_id": workflow_id, "variables": known}
            )
        except ValidationError as error:
            self._fail(_field(error.errors()[0]["loc"]), _sentence(error.errors(include_url=False)[0]))
        phases = self._phases(definition)
        self._require_sense(definition)
        return Workflow(definition, Path(variables["workspace"]), phases)

    def _read(self) -> dict[str, Any]:
        try:
            data = yaml.safe_load(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._fail("", "there is no such file")
        except UnicodeDecodeError:
            self._fail("", "it is not UTF-8 text")
        except OSError as error:
            self._fail("", f"it cannot be read: {error.strerror}")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            self._fail(where, f"it is not YAML: {getattr(error, 'problem', None) or error}")
        except RecursionError:
            self._fail("", "it is nested too deeply")
        if not isinstance(data, dict):
            self._fail("", f"it must be a mapping with 'name' and 'tasks', not {_kind(data)}")
        return data

    def _variables(self, own: Any, given: Mapping[str, Any], workspace: Path) -> dict[str, Any]:
        if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
            self._fail("vars", f"it must be a mapping of names to values, not {_kind(own)}")
        known = {**own, "workspace": str(workspace)}
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) or f"; it has {', '.join(sorted(known))}"
                self._fail("vars", f"the workflow has no variable {name!r} to set{hint}")
        base = self._file.absolute().parent
        return absolute_paths(known, base) | absolute_paths(dict(given), Path.cwd())

    def _substitute(self, value: Any, variables: Mapping[str, Any], field: str) -> Any:
        if isinstance(value, dict):
            return {
                key: self._substitute(item, variables, f"{field}.{key}".lstrip("."))
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._substitute(item, variables, f"{field}[{n}]") for n, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        if whole := REFERENCE.fullmatch(value):
            return self._look_up(whole, variables, field)
        return REFERENCE.sub(lambda found: formatted(self._look_up(found, variables, field)), value)

    def _look_up(self, found: re.Match[str], variables: Mapping[str, Any], field: str) -> Any:
        name = found[1]
        if name is None and found[2].startswith("tasks."):
            if not IN_INPUTS.match(field):
                self._fail(field, f"{found[0]} has a value only in the input_data of a task")
            return found[0]
        if name is None:
            self._fail(
                field,
                f"{found[0]} is not a variable; they are written ${{vars.NAME}}, outputs "
                "${tasks.NAME.FIELD}",
            )
        if name not in variables:
            hint = did_you_mean(name, variables) or f"; known: {', '.join(sorted(variables))}"
            self._fail(field, f"{found[0]} is unknown{hint}")
        if variables[name] is None:
            self._fail(field, f"{found[0]} has no value: give one with --set {name}=VALUE")
        return variables[name]

    def _require_shape(self, data: dict[str, Any]) -> None:
        if data.get("phases", 1) is None:
            del data["phases"]
        for key in OF_THE_RUN & data.keys():
            self._fail(key, "every run gives its own; leave it out")
        tasks = data.get("tasks")
        if not isinstance(tasks, list) or not tasks:
            shown = "missing" if tasks is None else "empty" if tasks in ([], {}) else _kind(tasks)
            self._fail("tasks", f"it must be a list of at least one task; it is {shown}")
        for number, task in enumerate(tasks):
            if not isinstance(task, dict):
                self._fail(f"tasks[{number}]", f"it must be a mapping with a 'name', not {_kind(task)}")
            for key in OF_THE_RUN & task.keys():
                self._fail(f"tasks[{number}].{key}", "every run gives its own; leave it out")
            if task.get("assigned_to") is None:
                self._fail(f"tasks[{number}].assigned_to", f"it is missing; {_choices(AgentType)}")

    def _require_known(self, data: dict[str, Any], model: type[BaseModel], place: str) -> None:
        known = [name for name in model.model_fields if name not in OF_THE_RUN | {"variables"}]
        known += ["vars"] if model is WorkflowDefinition else []
        for key in data:
            if key not in known and key not in OF_THE_RUN:
                hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
                self._fail(f"{place}{key}", f"there is no such field{hint}")

    def _with_absolute_paths(self, task: dict[str, Any]) -> dict[str, Any]:
        data = task.get("input_data")
        if not isinstance(data, dict):
            return task
        return {**task, "input_data": absolute_paths(data, self._file.absolute().parent)}

    def _phases(self, definition: WorkflowDefinition) -> dict[str, WorkflowPhase]:
        phases: dict[str, WorkflowPhase] = {}
        for number, task in enumerate(definition.tasks):
            fitting = [p for p in definition.phases if task.assigned_to in PHASE_AGENT_TYPES[p]]
            if not fitting:
                wanted = [p.value for p in WorkflowPhase if task.assigned_to in PHASE_AGENT_TYPES[p]]
                self._fail(
                    f"tasks[{number}].assigned_to",
                    f"{str(task.assigned_to)!r} works in phase {' or '.join(wanted)}, not among 'phases'",
                )
            phases[task.task_id] = fitting[0]
        if len(set(definition.phases)) != len(definition.phases):
            self._fail("phases", f"a phase is named twice: {', '.join(definition.phases)}")
        return phases

    def _require_sense(self, definition: WorkflowDefinition) -> None:
        try:
            Plan(definition)
        except WorkflowError as error:
            number, field = error.details["task_number"], error.details["field"]
            where = field if number is None else f"tasks[{number}].{field}"
            self._fail(where, error.details["problem"])

    def _fail(self, field: str, problem: str) -> NoReturn:
        where = f"{self._file}: {field}: " if field else f"{self._file}: "
        raise ConfigurationError(
            f"{where}{problem}", "WORKFLOW_FILE", {"file": str(self._file), "field": field}
        )


def _field(location: tuple[int | str, ...]) -> str:
    """A place in the file as a person writes it: tasks[1].timeout_seconds."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _sentence(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "it is missing"
    value = error["input"]
    for kind in (AgentType, WorkflowPhase):
        if error["type"] == "enum" and kind(next(iter(kind))).value in str(error["ctx"]["expected"]):
            return f"{value!r} is not one{did_you_mean(value, list(kind))}; {_choices(kind)}"
    return f"{_shown(value)} cannot be used: {error['msg']}"


def _choices(kind: type[AgentType] | type[WorkflowPhase]) -> str:
    return f"choose {', '.join(member.value for member in kind)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    return f"{_shown(value)}"
