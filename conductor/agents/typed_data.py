"""Typed values and the JSON-like dicts that tasks and results carry, checked both ways."""

from __future__ import annotations

from difflib import get_close_matches
from types import NoneType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, to_json

PROBLEMS_SHOWN = 5


class InvalidDataError(ValueError):
    """The text names every field, its value and what is wrong with it; `problems` are the same as data."""

    def __init__(self, problems: list[dict[str, str]]) -> None:
        self.problems = problems
        shown = [f"{problem['field']}: {problem['problem']}" for problem in problems[:PROBLEMS_SHOWN]]
        more = len(problems) - PROBLEMS_SHOWN
        super().__init__("; ".join(shown) + (f"; and {more} more" if more > 0 else ""))


class TypedData:
    """One type: a Pydantic model, a dict, or None.

    Everything is read as JSON, whether it was sent or not: an agent gets in a test what it gets on a node.
    """

    def __init__(self, annotation: Any, whole: str) -> None:
        """`whole` is what a problem is said of that is none of a field's."""
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        self._is_nothing = annotation is NoneType
        self._whole = whole

    def read(self, data: object) -> Any:
        """Make the typed value of a dict; InvalidDataError where it is not of the type."""
        return self._check(None if self._is_nothing and data == {} else data)

    def write(self, value: object) -> dict[str, Any]:
        """Make the dict of a typed value, or of a dict that would be one; InvalidDataError for any other.

        Fields go by their aliases; computed ones stay behind, for who reads it computes them again.
        """
        return self._dump(self._check(value)) or {}

    def _check(self, value: object) -> Any:
        try:
            checked = self._adapter.validate_json(to_json(value, round_trip=True))
            # What cannot be read again would fail at the other end.
            return self._adapter.validate_json(to_json(self._dump(checked)))
        except ValidationError as error:
            problems = error.errors(include_url=False)
            raise InvalidDataError([self._problem(each, value) for each in problems]) from error
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidDataError([{"field": self._whole, "problem": f"no JSON: {error}"}]) from error

    def _dump(self, checked: Any) -> Any:
        return self._adapter.dump_python(checked, mode="json", by_alias=True, round_trip=True)

    def _problem(self, error: ErrorDetails, value: object) -> dict[str, str]:
        field = ".".join(str(part) for part in error["loc"]) or self._whole
        if error["type"] == "missing":
            near = get_close_matches(field, map(str, value), n=1) if isinstance(value, dict) else []
            there = f"; what there is: {near[0]!r}" if near else ""
            return {"field": field, "problem": f"it is missing{there}"}
        text = repr(error["input"])
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        return {"field": field, "problem": f"{shown} is not usable: {error['msg']}"}
