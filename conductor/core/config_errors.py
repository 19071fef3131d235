"""Reading the configuration file, and saying what is wrong with a configuration."""

from __future__ import annotations

import logging
import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_origin

import yaml
from pydantic import BaseModel

from conductor.core.exceptions import ConfigurationError
from conductor.core.urls import MASK, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails
    from pydantic_settings import SettingsError

logger = logging.getLogger(__name__)

#: What begins with our prefix and is for others: our tests, and what Kubernetes and Docker give every
#: container beside a service or container that is called conductor.
_OF_OTHERS = re.compile(r"CONDUCTOR_TEST_|.*_(SERVICE_(HOST|PORT)|PORT(_\d+_(TCP|UDP))?)(_|$)")
#: How alike two names have to be, from 0 to 1, that one may be meant as the other.
_ALIKE = 0.75
#: The section of which nothing is shown that somebody wrote: any of it may be a secret in the wrong place.
_UNSHOWN = "signing"
#: What PyYAML quotes of a secret without quotes that begins with "*", "&" or "!".
_QUOTED_OF_YAML = re.compile(r"\b(alias|anchor|tag|handle) ['\"].*", re.DOTALL)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a file, {} from an empty one; ConfigurationError if there is none to read."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unusable(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _unusable(path, "it is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = _QUOTED_OF_YAML.sub(r"\1", getattr(error, "problem", None) or "it is not YAML")
        raise _unusable(path, f"{where}{problem}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise _unusable(path, f"it must hold a mapping of settings, not a {type(data).__name__}")
    # A section that is named and left empty means its defaults.
    return {str(key): value for key, value in data.items() if value is not None}


def check_variables(model: type[BaseModel], env_prefix: str) -> None:
    """Refuse variables that look like misspelled settings, and warn of others that are none.

    Raises ConfigurationError. Keys within a section are checked with its other keys.
    """
    known = dict(_variables(model, env_prefix))
    for name in sorted(os.environ):
        word = name.upper()
        section = env_prefix + word.removeprefix(env_prefix).partition("__")[0]
        if not word.startswith(env_prefix) or not os.environ[name] or _OF_OTHERS.match(word):
            continue
        if word in known or (word != section and known.get(section)):
            continue
        ends = [one.removeprefix(env_prefix) for one in known]
        if close := get_close_matches(word.removeprefix(env_prefix), ends, n=1, cutoff=_ALIKE):
            raise ConfigurationError(
                f"The environment variable {name} is no setting: did you mean {env_prefix}{close[0]}?",
                details={"keys": [name], "file": None},
            )
        logger.warning("the environment variable %s is no setting of Conductor and is ignored", name)


def _variables(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, bool]]:
    """The variables of a model, and whether each stands for a section."""
    for key, field in model.model_fields.items():
        name, inner = f"{prefix}{key.upper()}", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield name, True
            yield from _variables(inner, f"{name}__")
        else:
            yield name, False


def explain(
    error: ValidationError, model: type[BaseModel], path: Path | None, env_prefix: str
) -> ConfigurationError:
    """Make an error that names key, value, source and way out of each thing that is wrong."""
    problems = error.errors(include_url=False)
    sentences = [_sentence(one, model, source_of(one["loc"], path, env_prefix)) for one in problems]
    keys = [_key(problem) for problem in problems]
    return ConfigurationError(
        " ".join(sentences), details={"keys": keys, "file": str(path) if path else None}
    )


def explain_no_json(error: SettingsError, model: type[BaseModel], env_prefix: str) -> ConfigurationError:
    """Make the error of a variable that stands for a whole section and is no JSON; its value is not shown."""
    field = re.search(r'field "(\w+)"', str(error))
    if field is None:
        return ConfigurationError(f"A {env_prefix}* variable cannot be used: {error}.")
    name = f"{env_prefix}{field[1].upper()}"
    if get_origin(model.model_fields[field[1]].annotation) is list:
        way_out = "it must be a JSON list."
    else:
        way_out = f"it must be a JSON object. Single keys are set with variables of their own, {name}__KEY."
    return ConfigurationError(
        f"The environment variable {name} is not valid: {way_out}",
        details={"keys": [field[1]], "file": None},
    )


def _key(problem: ErrorDetails) -> str:
    loc = problem["loc"]
    if problem["type"] == "extra_forbidden" and _is_unshown(problem):
        loc = (*loc[:-1], MASK)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return key.removeprefix(".") or "the configuration"


def source_of(loc: tuple[int | str, ...], path: Path | None, env_prefix: str) -> str:
    """Tell where the value of a key comes from, in words."""
    variables = {name.upper(): name for name in os.environ}
    for depth in range(len(loc), 0, -1):
        wanted = env_prefix + "__".join(str(part) for part in loc[:depth]).upper()
        if wanted in variables:
            return f"environment variable {variables[wanted]}"
    # What is wrong with a whole section may be due to any of its keys.
    section = env_prefix + "__".join(str(part) for part in loc).upper() + "__"
    inner = [
        f"environment variable {variables[name]}" for name in sorted(variables) if name.startswith(section)
    ]
    if loc and inner:
        return " and ".join([*inner, *([f"file {str(path)!r}"] if path and _sets(path, loc) else [])])
    return f"file {str(path)!r}" if path else "the arguments or the environment"


def _sets(path: Path, loc: tuple[int | str, ...]) -> bool:
    """Tell whether a file that could be read says something of a key."""
    value: Any = read_yaml(path)
    for part in loc:
        value = value.get(part) if isinstance(value, dict) else None
    return value is not None


def _sentence(problem: ErrorDetails, model: type[BaseModel], source: str) -> str:
    key = _key(problem)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        close = get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}."
        return f"Unknown key {key!r} in {source}; {hint}"
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    value = ""
    if isinstance(problem["input"], (str, int, float)) and problem["type"] != "value_error":
        value = f" = {MASK if _is_unshown(problem) else shown(problem['input'])}"
    return f"{key}{value} in {source} is not valid: {reason}."


def _is_unshown(problem: ErrorDetails) -> bool:
    return problem["loc"][:1] == (_UNSHOWN,)


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _unusable(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The configuration file {str(path)!r} cannot be used: {reason}.", details={"file": str(path)}
    )
