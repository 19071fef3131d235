"""The kinds of entity a state manager keeps, and how one becomes JSON field by field and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import StateError
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Iterable, Mapping

M = TypeVar("M", bound=BaseModel)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Versioned(NamedTuple, Generic[M]):
    """A state and the version to give to a compare-and-set save of it."""

    state: M
    version: int


@dataclass(frozen=True, eq=False)
class Kind(Generic[M]):
    """What a state manager must know of one kind of entity; immutable, for any thread.

    Attributes:
        name: the word in keys and messages.
        model: the class of its entities.
        id_field: the field with the id.
        born_field: the time by which lists are sorted, newest first.
        filters: the fields by which lists can be filtered, and their possible values.
        parts: dict fields that grow: each of their items is kept under a name of its own, `field:key`.
    """

    name: str
    model: type[M]
    id_field: str
    born_field: str
    filters: Mapping[str, type[enum.StrEnum]]
    parts: tuple[str, ...] = ()
    plain: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        fields = tuple(name for name in self.model.model_fields if name not in self.parts)
        object.__setattr__(self, "plain", fields)

    def id_of(self, state: M) -> str:
        """Return the entity's id."""
        return str(getattr(state, self.id_field))

    def born(self, state: M) -> int:
        """Return the microseconds since 1970 of the time by which the entity is sorted."""
        return microseconds(getattr(state, self.born_field))

    def check_type(self, state: object) -> None:
        """Raise StateError STATE_INVALID where `state` is not one of this kind."""
        if not isinstance(state, self.model):
            raise StateError(
                f"only a {self.model.__name__} can be saved as {self.name}, not {type(state).__name__}",
                "STATE_INVALID",
                {"kind": self.name},
            )

    def encode(self, state: M) -> dict[str, bytes]:
        """Return one JSON value per field, and per item of a part; StateError STATE_NOT_SERIALIZABLE."""
        self.check_type(state)
        values = state.__dict__
        name = ""
        try:
            encoded = {
                name: _ENCODERS.get(type(value := values[name]), to_json)(value) for name in self.plain
            }
            for name in self.parts:
                for key, item in values[name].items():
                    encoded[f"{name}:{key}"] = to_json(item)
        except (PydanticSerializationError, UnicodeError, ValueError) as error:
            raise self._not_serializable(state, error) from error
        return encoded

    def encode_whole(self, state: M) -> bytes:
        """Return the entity as one JSON object; StateError STATE_NOT_SERIALIZABLE."""
        self.check_type(state)
        try:
            return to_json(state)
        except (PydanticSerializationError, UnicodeError, ValueError) as error:
            raise self._not_serializable(state, error) from error

    def _not_serializable(self, state: M, error: Exception) -> StateError:
        entity_id = self.id_of(state)
        names = [name for name in self.model.model_fields if _unserializable(getattr(state, name))]
        return StateError(
            f"{self.name} {entity_id!r} cannot be saved: no JSON can hold its {', '.join(names)} ({error})",
            "STATE_NOT_SERIALIZABLE",
            {"kind": self.name, "id": entity_id, "fields": names},
        )

    def decode(self, key: str, fields: Mapping[bytes, bytes]) -> M:
        """Return the entity that is kept under `key`; StateError STATE_CORRUPT naming key and field."""
        try:
            pieces = [prefix + fields[name] for name, prefix in self._wire_names]
        except KeyError as error:
            raise self._corrupt(key, error.args[0].decode(), "it is missing") from None
        for part, prefix in self._wire_parts:
            items = [
                to_json(name[len(prefix) :].decode()) + b":" + value
                for name, value in fields.items()
                if name.startswith(prefix)
            ]
            pieces.append(b'"%b":{%b}' % (part, b",".join(items)))
        try:
            return self.model.model_validate_json(b"{%b}" % b",".join(pieces))
        except (ValidationError, UnicodeError) as error:
            raise self._damage(key, fields, error) from error

    def decode_json(self, key: str, data: bytes) -> M:
        """Return the entity from one JSON object, as a change announces it."""
        try:
            return self.model.model_validate_json(data)
        except ValidationError as error:
            raise self._corrupt(key, _first_field(error), str(error)) from error

    @cached_property
    def _wire_names(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), b'"%b":' % name.encode()) for name in self.plain]

    @cached_property
    def _wire_parts(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), name.encode() + b":") for name in self.parts]

    def _damage(self, key: str, fields: Mapping[bytes, bytes], error: Exception) -> StateError:
        """Find the field that is to blame, one by one: JSON itself may be broken."""
        for name, value in fields.items():
            text = name.decode(errors="replace")
            if text not in self.plain and not text.startswith(tuple(f"{part}:" for part in self.parts)):
                continue
            try:
                from_json(value)
            except ValueError as reason:
                return self._corrupt(key, text, f"it is not JSON: {reason}")
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            return self._corrupt(
                key, self._name_of(first["loc"]), f"{first['msg']}, not {first['input']!r:.80}"
            )
        return self._corrupt(key, "?", str(error))

    def _name_of(self, location: tuple[int | str, ...]) -> str:
        if location and location[0] in self.parts and len(location) > 1:
            return f"{location[0]}:{location[1]}"
        return str(location[0]) if location else "?"

    def _corrupt(self, key: str, name: str, reason: str) -> StateError:
        return StateError(
            f"{key} is damaged: field {name!r}: {reason}. Repair the field or delete the key.",
            "STATE_CORRUPT",
            {"key": key, "field": name, "kind": self.name},
        )

    def checked(self, name: str, value: object) -> bytes:
        """Return the JSON of a new value for one field; StateError STATE_INVALID naming field and value."""
        if name not in self.plain:
            raise StateError(
                f"{self.name} state has no field {name!r}: it has {', '.join(self.plain)}",
                "STATE_INVALID",
                {"kind": self.name, "field": name},
            )
        try:
            valid = _adapter(self.model, name).validate_python(value)
            return _ENCODERS.get(type(valid), to_json)(valid)
        except (ValidationError, PydanticSerializationError, UnicodeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise StateError(
                f"{self.name} state: {name!r} cannot be {value!r:.200}: {reason}",
                "STATE_INVALID",
                {"kind": self.name, "field": name},
            ) from error

    def wanted(self, filters: Mapping[str, str | None]) -> dict[str, str]:
        """Return the filters that are set; StateError STATE_INVALID with the possible values."""
        chosen = {}
        for name, value in filters.items():
            if value is None:
                continue
            values = [member.value for member in self.filters[name]]
            if value not in values:
                raise StateError(
                    f"{name} cannot be {value!r}: it is one of {', '.join(values)}",
                    "STATE_INVALID",
                    {"kind": self.name, "field": name},
                )
            chosen[name] = str(value)
        return chosen

    def matches(self, state: M, wanted: Mapping[str, str]) -> bool:
        """Tell whether the entity passes the filters."""
        return all(getattr(state, name) == value for name, value in wanted.items())


def microseconds(time: datetime) -> int:
    """Return the whole microseconds since 1970, without the rounding of a float."""
    span = time - EPOCH
    return (span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds


def _text(value: str) -> bytes:
    return encode_basestring(value).encode()


# pydantic_core.to_json costs 1 to 2 microseconds a call; these types are most of what is saved.
_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"null",
    str: _text,
    int: lambda value: b"%d" % value,
    datetime: lambda value: b'"%b"' % value.isoformat().encode(),
    list: lambda value: to_json(value) if value else b"[]",
    dict: lambda value: to_json(value) if value else b"{}",
    **{
        words: {member: b'"%b"' % member.encode() for member in words}.__getitem__
        for words in (AgentStatus, AgentType, TaskStatus, WorkflowPhase)
    },
}


def _unserializable(value: object) -> bool:
    try:
        to_json(value)
    except (PydanticSerializationError, UnicodeError, ValueError):
        return True
    return False


def _first_field(error: ValidationError) -> str:
    location: Iterable[int | str] = error.errors(include_url=False)[0]["loc"]
    return ":".join(map(str, location)) or "?"


@cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """Return a validator for one field alone; made once, as making it costs a millisecond."""
    info = model.model_fields[name]
    return TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]


AGENT = Kind("agent", AgentState, "agent_id", "created_at", {"status": AgentStatus, "agent_type": AgentType})
WORKFLOW = Kind(
    "workflow",
    WorkflowState,
    "workflow_id",
    "started_at",
    {"status": TaskStatus, "current_phase": WorkflowPhase},
    ("task_results", "agent_states"),
)
TASK_RESULT = Kind("task_result", TaskResult, "task_id", "started_at", {"status": TaskStatus})
KINDS: tuple[Kind[Any], ...] = (AGENT, WORKFLOW, TASK_RESULT)
