"""References in the inputs of tasks: `${tasks.NAME.path.to.field}` and `${vars.NAME}`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conductor.core.exceptions import WorkflowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conductor.core.models import TaskDefinition, TaskResult

#: Other text in "${...}" is not ours, and stays as it is.
REFERENCE = re.compile(r"\$\{(tasks|vars)\.([^{}]*)\}")
_BEGINNING = re.compile(r"\$\{(?:tasks?|vars?)\b")


@dataclass(frozen=True)
class Reference:
    """A reference, and the field of the task's input_data in which it stands."""

    text: str
    kind: str
    path: str
    """What follows "tasks." or "vars."."""
    field: str


def references(task: TaskDefinition) -> Iterator[Reference]:
    """Find every reference in a task's inputs."""
    yield from _found(task.input_data, "input_data")


def slips(value: Any, field: str = "input_data") -> Iterator[tuple[str, str]]:
    """Find the fields with what was meant as a reference and is none, and say what is wrong."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str) and _BEGINNING.search(key):
                yield field, f"{key!r} is the name of a field, where nothing is put in place of a reference"
            yield from slips(item, f"{field}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from slips(item, f"{field}[{number}]")
    elif isinstance(value, str) and (slip := _BEGINNING.search(REFERENCE.sub("", value))):
        meant = "${tasks.NAME.FIELD} or ${vars.NAME}"
        yield field, f"{slip.string[slip.start() :][:40]!r} is no reference; write {meant}"


def resolve(value: Any, replace: Callable[[Reference], Any], field: str = "input_data") -> Any:
    """Put values in place of references: as they are where nothing stands around one, else as text."""
    if isinstance(value, dict):
        return {key: resolve(item, replace, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, replace, f"{field}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    if found := REFERENCE.fullmatch(value):
        return replace(_reference(found, field))
    return REFERENCE.sub(lambda found: formatted(replace(_reference(found, field))), value)


def formatted(value: Any) -> str:
    """Write a value into a text: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def split_name(path: str, known: Mapping[str, Any]) -> tuple[str, str] | None:
    """Take "NAME.path" apart, where NAME is the longest name that is known; None if none is."""
    end = len(path)
    while end > 0:
        if path[:end] in known:
            return path[:end], path[end + 1 :]
        end = path.rfind(".", 0, end)
    return None


def look_up(
    reference: Reference, path: str, task: TaskDefinition, result: TaskResult, workflow_id: str
) -> Any:
    """Follow `path` into the output of `task`; WorkflowError, code MISSING_OUTPUT, where it leads nowhere."""
    value: Any = result.output_data
    way = ""
    for step in path.split(".") if path else ():
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise WorkflowError(
                f"{reference.field}: {reference.text}: the output of task {task.name!r} has no {step!r}"
                f"{f' in {way!r}' if way else ''}; {_contents(value)}.",
                workflow_id,
                "MISSING_OUTPUT",
                {"reference": reference.text, "field": reference.field, "task_id": task.task_id},
            )
        way = f"{way}.{step}".lstrip(".")
    return value


def _found(value: Any, field: str) -> Iterator[Reference]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _found(item, f"{field}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _found(item, f"{field}[{number}]")
    elif isinstance(value, str):
        for found in REFERENCE.finditer(value):
            yield _reference(found, field)


def _reference(found: re.Match[str], field: str) -> Reference:
    return Reference(found[0], found[1], found[2], field)


def _contents(value: Any) -> str:
    if isinstance(value, dict):
        return f"it has {', '.join(map(repr, value))}" if value else "it is empty"
    if isinstance(value, list):
        return f"it is a list of {len(value)}"
    return f"it is {value!r:.80}"
