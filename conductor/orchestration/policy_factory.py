"""The policies that a configuration names."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from conductor.core.exceptions import ConfigurationError
from conductor.core.urls import shown
from conductor.core.wording import did_you_mean
from conductor.orchestration.policy_engine import (
    AgentAvailabilityPolicy,
    AgentTypeConcurrencyPolicy,
    BudgetPolicy,
    MaxConcurrentTasksPolicy,
    PhaseGatePolicy,
    Policy,
    PolicyEngine,
    RateLimitPolicy,
    TaskTimeoutPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from conductor.core.config import PolicySetting

BUILT_IN: dict[str, type[Policy]] = {
    "max_concurrent_tasks": MaxConcurrentTasksPolicy,
    "task_timeout": TaskTimeoutPolicy,
    "phase_gate": PhaseGatePolicy,
    "agent_availability": AgentAvailabilityPolicy,
    "agent_type_concurrency": AgentTypeConcurrencyPolicy,
    "rate_limit": RateLimitPolicy,
    "budget": BudgetPolicy,
}


def build_policy_engine(settings: Sequence[PolicySetting], source: str = "") -> PolicyEngine:
    """Make the policies of `config.policies`, which come from `source`, as in "file 'conductor.yaml'".

    Raises ConfigurationError, code CONFIG_ERROR, that names the field ("policies[1].rate_limit.max_tasks"),
    its value and the way out. Policies named by an import path are imported.
    """
    try:
        return _engine(settings)
    except ConfigurationError as error:
        if not source:
            raise
        raise ConfigurationError(f"{source}: {error.message}", error.error_code, error.details) from error


def _engine(settings: Sequence[PolicySetting]) -> PolicyEngine:
    engine = PolicyEngine()
    places: dict[str, str] = {}
    for number, setting in enumerate(settings):
        place = f"policies[{number}]"
        policy = _make(setting, place)
        if policy.name in places:
            raise _invalid(
                f"{place}.{setting.name}.name",
                f"there is a policy {policy.name!r} already, {places[policy.name]}; give this one another "
                "name, where it takes one",
            )
        places[policy.name] = place
        engine.register_policy(policy)
    return engine


def _make(setting: PolicySetting, place: str) -> Policy:
    maker = _find(setting.name, place)
    place = f"{place}.{setting.name}"
    parameters = _checked(maker, setting.parameters, place)
    try:
        policy = maker(**parameters)
    except ConfigurationError as error:
        raise _from_policy(error, place) from error
    except Exception as error:
        raise _invalid(place, f"it cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(policy, Policy):
        raise _invalid(place, f"it makes a {type(policy).__name__}, which is not a conductor.Policy")
    return policy


def _find(name: str, place: str) -> Callable[..., Any]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        hint = did_you_mean(name, BUILT_IN) or f"; known: {', '.join(BUILT_IN)}"
        raise _invalid(
            place, f"there is no policy {name!r}{hint}. Your own are named package.module:Class", name
        )
    # An installed script has its own directory there instead of the working directory.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise _invalid(
            place,
            f"{name!r} cannot be imported: {type(error).__name__}: {error}. It has to be importable from the "
            "working directory or installed, as package.module:Class",
            name,
        ) from error
    if not callable(found) or (isinstance(found, type) and not issubclass(found, Policy)):
        raise _invalid(place, f"{name!r} is not a subclass of conductor.Policy", name)
    return found  # type: ignore[no-any-return]


def _checked(maker: Callable[..., Any], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Give the parameters as the types that the constructor declares."""
    known = inspect.signature(maker).parameters
    named = [name for name, one in known.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in known.values())
    for name in given:
        if name not in named and not takes_any:
            hint = did_you_mean(name, named) or f"; it takes {', '.join(named) or 'none'}"
            raise _invalid(f"{place}.{name}", f"there is no such parameter{hint}")
    for name in named:
        if known[name].default is inspect.Parameter.empty and name not in given:
            raise _invalid(f"{place}.{name}", "it is missing, and has no default")
    hints = _hints(maker)
    return {
        name: _converted(value, hints[name], f"{place}.{name}") if name in hints else value
        for name, value in given.items()
    }


def _hints(maker: Callable[..., Any]) -> dict[str, Any]:
    function = maker.__init__ if isinstance(maker, type) else maker  # type: ignore[misc]
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        # Names that exist for type checkers only; the constructor has the last word.
        return {}


def _converted(value: Any, hint: Any, place: str) -> Any:
    """Check a value as strictly as JSON is: "5" is no number, but text may stand for a time or a path."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        text = json.dumps(value, default=str)
    except (PydanticSchemaGenerationError, TypeError):
        return value
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        inner = "".join(f".{part}" for part in problem["loc"])
        raise _invalid(f"{place}{inner}", problem["msg"], problem["input"]) from None


def _from_policy(error: ConfigurationError, place: str) -> ConfigurationError:
    """Name the field of an error that a policy's constructor raised."""
    parameter = error.details.get("parameter")
    if parameter is None:
        return _invalid(place, error.message.rstrip("."))
    field = f"{place}.{parameter}"
    value, must = error.details.get("value"), error.details.get("must")
    return ConfigurationError(
        f"{field} = {value} is not valid: it must be {must}.", details={"keys": [field]}
    )


def _invalid(field: str, reason: str, value: object = None) -> ConfigurationError:
    # What is in a list or mapping may be secret.
    given = f" = {shown(value)}" if isinstance(value, (str, int, float)) else ""
    return ConfigurationError(f"{field}{given} is not valid: {reason}.", details={"keys": [field]})
