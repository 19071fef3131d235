"""Reading a task's input; every mistake is a WorkFailedError that names the field and the value."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conductor.core.wording import did_you_mean
from workers.agents.failure import WorkFailedError


def require_known(data: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse what is in the input and not `known`."""
    names = list(known)
    for name in data:
        if name not in names:
            raise WorkFailedError(
                f"the task's input has {name!r}, which this agent does not take{did_you_mean(name, names)}; "
                f"it takes {', '.join(names)}"
            )


def path_input(data: dict[str, Any], name: str) -> Path | None:
    """The absolute path under a name of the input; None where there is none."""
    value = data.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or "\0" in value:
        raise WorkFailedError(f"the task's input '{name}' must be a path, not {value!r}")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise WorkFailedError(f"the task's input '{name}' is {value!r}: {error}") from None


def count_input(data: dict[str, Any], name: str, default: int, least: int = 1) -> int:
    """The whole number of at least `least` under a name of the input."""
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WorkFailedError(
            f"the task's input '{name}' must be a whole number of at least {least}, not {value!r}"
        )
    return value


def text_input(data: dict[str, Any], name: str) -> str | None:
    """The text under a name of the input; None where there is none."""
    value = data.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or "\0" in value:
        raise WorkFailedError(f"the task's input '{name}' must be a text, not {value!r}")
    return value


def texts_input(data: dict[str, Any], name: str, default: list[str]) -> list[str]:
    """The list of texts under a name of the input, as arguments of a command are."""
    value = data.get(name, default)
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise WorkFailedError(f"the task's input '{name}' must be a list of texts, not {value!r}")
    return value


def flag_input(data: dict[str, Any], name: str) -> bool:
    """The true or false under a name of the input, false where there is none."""
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise WorkFailedError(f"the task's input '{name}' must be true or false, not {value!r}")
    return value
