"""The checks and errors that all state managers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conductor.core.exceptions import StateError
from conductor.core.fields import utc_now
from conductor.orchestration.state_kinds import AGENT, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping


def encode_changes(
    changes: Mapping[str, Any], increments: Mapping[str, int]
) -> tuple[dict[str, bytes], dict[str, int]]:
    """Check what an update is given and return it encoded, with `updated_at`; StateError STATE_INVALID."""
    for name in ("agent_id", "created_at"):
        if name in changes:
            raise StateError(
                f"{name!r} of an agent state cannot be changed", "STATE_INVALID", {"field": name}
            )
    encoded = {name: AGENT.checked(name, value) for name, value in changes.items()}
    for name, value in increments.items():
        AGENT.checked(name, 0)
        if name != "error_count" or name in changes or type(value) is not int:
            raise StateError(
                f"increment: {name!r} cannot be incremented by {value!r}: only error_count can be, by a "
                "whole number, and not while it is set",
                "STATE_INVALID",
                {"field": name},
            )
    encoded.setdefault("updated_at", AGENT.checked("updated_at", utc_now()))
    return encoded, dict(increments)


def checked_page(limit: int | None, offset: int) -> tuple[int | None, int]:
    """Return limit and offset; StateError STATE_INVALID where they are not numbers of 0 or more."""
    for name, value in (("limit", limit), ("offset", offset)):
        if value is not None and (type(value) is not int or value < 0):
            raise StateError(
                f"{name} cannot be {value!r}: it is a whole number of 0 or more",
                "STATE_INVALID",
                {"field": name},
            )
    return limit, offset


def not_connected() -> StateError:
    """Make the error of an operation on a state manager that is not connected."""
    return StateError(
        "the state manager is not connected: call connect() first, or use 'async with'", "STATE_NOT_CONNECTED"
    )


def not_found(kind: str, entity_id: str) -> StateError:
    """Make the error of a change to an entity that there is not."""
    return StateError(
        f"there is no {kind} state {entity_id!r}: save it first",
        "STATE_NOT_FOUND",
        {"kind": kind, "id": entity_id},
    )


def conflict(kind: Kind[Any], entity_id: str, expected: int | None, actual: int) -> StateError:
    """Make the error of a compare-and-set save that came too late."""
    found = f"has version {actual}" if actual else "does not exist"
    return StateError(
        f"{kind.name} state {entity_id!r} {found}, not version {expected}: read it again and "
        "repeat the change",
        "STATE_CONFLICT",
        {"kind": kind.name, "id": entity_id, "expected_version": expected, "actual_version": actual},
    )


def below_zero(entity_id: str, name: str) -> StateError:
    """Make the error of an increment by a negative number that is too large."""
    return StateError(
        f"increment: {name!r} of agent {entity_id!r} would fall below 0", "STATE_INVALID", {"field": name}
    )
