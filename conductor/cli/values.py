"""Values that a person writes as KEY=VALUE or JSON."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
import yaml

PATH_NAMES = ("project", "workspace", "output_dir", "wheel")
"""Inputs that are paths: made absolute, since an agent has another working directory."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""Seconds in the units of time."""


def parse_pairs(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """Read KEY=VALUE, the value as YAML reads it (10, true, [a, b], else text)."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip():
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=option)
        found[key.strip()] = text if key.strip() in PATH_NAMES else _value(text)
    return found


def parse_object(text: str, option: str) -> dict[str, Any]:
    """Read a JSON object; a usage error says where it is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r} is JSON, but not an object like {{}}", param_hint=option)
    return value


def parse_duration(text: str) -> float:
    """Read a time such as 90s, 15m, 2h or 3d, as seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 90s, 15m, 2h or 3d")
    return int(found[1]) * UNITS[found[2]]


def show_duration(seconds: float) -> str:
    """Write a time in its largest unit, rounded down."""
    for unit, length in reversed(UNITS.items()):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "0s"


def absolute_paths(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The same with the paths among the inputs absolute, those that are relative taken from `base`."""
    return {key: _absolute(value, base) if key in PATH_NAMES else value for key, value in data.items()}


def _absolute(value: Any, base: Path) -> Any:
    if not isinstance(value, str) or not value or value.startswith("${"):
        return value
    return str((base / Path(value).expanduser()).resolve())


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError):
        return text
    return text if value is None and text not in ("null", "~") else value
