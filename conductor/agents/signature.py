"""What a function that is to be an agent takes and gives, read from its signature."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from pydantic import BaseModel, PydanticUserError, RootModel

from conductor.agents.context import TaskContext
from conductor.agents.typed_data import TypedData
from conductor.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


class Role(StrEnum):
    """What a parameter is for."""

    DATA = "data"
    CONTEXT = "context"


_SHAPES: tuple[list[Role], ...] = ([], [Role.DATA], [Role.CONTEXT], [Role.DATA, Role.CONTEXT])


@dataclass(frozen=True)
class Signature:
    """The types of input and output, and the function's parameters in order."""

    input: TypedData
    output: TypedData
    roles: tuple[Role, ...]


def read_signature(function: Callable[..., Any]) -> Signature:
    """Read it; ConfigurationError, code BAD_AGENT, with a sentence that says what to write instead."""
    if not inspect.iscoroutinefunction(function):
        raise _refusal(function, "is not an async function; write 'async def'")
    annotations: dict[Role, Any] = {}
    roles = []
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            shown = str(parameter.replace(annotation=parameter.empty))
            raise _refusal(function, f"takes {shown!r}; an agent takes at most (data, context)")
        annotation = _resolve(function, parameter.name, parameter.annotation)
        roles.append(_role(position, parameter.name, annotation))
        annotations[roles[-1]] = annotation
    if roles not in _SHAPES:
        text = inspect.signature(function)
        raise _refusal(
            function,
            f"takes {text}; an agent takes (data, context: TaskContext), one of them, or nothing",
        )
    returned = _resolve(function, "return", inspect.signature(function).return_annotation)
    return Signature(
        _typed(function, "data", annotations.get(Role.DATA, Any), dict[str, Any], "input"),
        _output(function, returned),
        tuple(roles),
    )


def _role(position: int, name: str, annotation: Any) -> Role:
    if annotation is TaskContext:
        return Role.CONTEXT
    # Without annotations it is the second one, or the one that is called so.
    unsaid = annotation is Any and (position == 1 or name == Role.CONTEXT)
    return Role.CONTEXT if unsaid else Role.DATA


def _output(function: Callable[..., Any], annotation: Any) -> TypedData:
    if annotation is NoneType:
        return TypedData(NoneType, "output")
    return _typed(function, "return", annotation, dict[str, Any] | None, "output")


def _typed(function: Callable[..., Any], name: str, annotation: Any, unsaid: Any, whole: str) -> TypedData:
    if annotation is Any:
        return TypedData(unsaid, whole)
    if not _is_dict(annotation) and not _is_model(annotation):
        shown = getattr(annotation, "__qualname__", str(annotation))
        nothing = " or None" if name == "return" else ""
        raise _refusal(
            function, f"has {shown!r} as the type of {name!r}; use a Pydantic model or dict{nothing}"
        )
    try:
        return TypedData(annotation, whole)
    except PydanticUserError as error:
        raise _refusal(function, f"has a type of {name!r} that cannot be used: {error}") from error


def _is_dict(annotation: Any) -> bool:
    return annotation is dict or get_origin(annotation) is dict


def _is_model(annotation: Any) -> bool:
    """Whether it is a model whose JSON is an object, as that of a RootModel need not be."""
    if not isinstance(annotation, type) or get_origin(annotation) is not None:
        return False
    return issubclass(annotation, BaseModel) and not issubclass(annotation, RootModel)


def _resolve(function: Callable[..., Any], name: str, annotation: Any) -> Any:
    """Find what an annotation stands for, Any where there is none."""
    if annotation is inspect.Signature.empty:
        return Any
    if isinstance(annotation, str) and annotation.rpartition(".")[2] == TaskContext.__name__:
        # The context is often imported for type checkers alone.
        return TaskContext
    alone = SimpleNamespace(__annotations__={name: annotation})
    module = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return get_type_hints(alone, globalns=module)[name]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise _refusal(
            function,
            f"has {annotation!r} as the type of {name!r}, which is not to be found ({error}); import or "
            "define it at the top of the module, not in a function nor under TYPE_CHECKING",
        ) from error


def _refusal(function: Callable[..., Any], problem: str) -> ConfigurationError:
    name = getattr(function, "__qualname__", repr(function))
    return ConfigurationError(f"{name} cannot be an agent: it {problem}.", "BAD_AGENT", {"function": name})
