"""What a check found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad it is; only PROBLEM makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    CANNOT_CHECK = "cannot check"


@dataclass(frozen=True)
class Finding:
    """One sentence on what was found and what it means, and one on what to do, empty where all is well."""

    check: str
    level: Level
    meaning: str
    advice: str = ""


def ok(check: str, meaning: str) -> Finding:
    """Make the finding that all is well."""
    return Finding(check, Level.OK, meaning)


def warning(check: str, meaning: str, advice: str) -> Finding:
    """Make the finding of what will hurt one day."""
    return Finding(check, Level.WARNING, meaning, advice)


def problem(check: str, meaning: str, advice: str) -> Finding:
    """Make the finding of what hurts."""
    return Finding(check, Level.PROBLEM, meaning, advice)


def cannot_check(check: str, meaning: str, advice: str) -> Finding:
    """Make the finding of what a server does not let anybody see."""
    return Finding(check, Level.CANNOT_CHECK, meaning, advice)
