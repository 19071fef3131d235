"""The Lua scripts, one set for every kind of entity."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from conductor.orchestration.state_kinds import AGENT, KINDS

if TYPE_CHECKING:
    from conductor.orchestration.state_kinds import Kind


class Script(NamedTuple):
    """A script and the digest by which a server that has loaded it runs it."""

    source: bytes
    sha: bytes


NAMES = ("save", "update", "put_part", "delete", "page", "forget")


@cache
def script(kind: str, name: str) -> Script:
    """Return the script for entities of a kind."""
    (found,) = (one for one in KINDS if one.name == kind)
    source = f"{_constants(found)}\n{_read('common')}\n{_read(name)}".encode()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def all_scripts() -> list[Script]:
    """Return every script, to be loaded into a server."""
    return [script(kind.name, name) for kind in KINDS for name in NAMES]


@cache
def _read(name: str) -> str:
    return files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8")


def _constants(kind: Kind[Any]) -> str:
    values = ", ".join(f"{name} = {_table(list(words))}" for name, words in kind.filters.items())
    return "\n".join(
        [
            f"local FILTERS, PARTS, WATCHED = {_table(kind.filters)},"
            f" {json.dumps(bool(kind.parts))}, {json.dumps(kind is AGENT)}",
            f"local function fields() return {_table(kind.plain)} end",
            f"local function filter_values() return {{{values}}} end",
        ]
    )


def _table(words: object) -> str:
    return "{" + ", ".join(f"'{word}'" for word in words) + "}"  # type: ignore[attr-defined]
