"""The one table, and the machine it was made on."""

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import redis

from benchmarks.harness import times_as_good

HEADER = ("", "what", "who", "median", "lowest .. highest", "ours is", "to reach")
_VERDICT = {True: "yes", False: "NO", None: "?"}
_LIBRARIES = ("celery", "kombu", "redis", "hiredis", "pydantic", "faststream")


@dataclass(frozen=True)
class Row:
    """One peer's figures; `note` stands where there are none."""

    section: str
    what: str
    who: str
    unit: str
    rounds: list[float] = field(default_factory=list)
    lower_is_better: bool = False
    times: float | None = None
    target: float | None = None
    note: str = ""
    aim: str = ""
    """What is to be reached, where it is not a ratio."""

    @property
    def median(self) -> float | None:
        """The middle of the rounds."""
        return median(self.rounds) if self.rounds else None

    @property
    def is_reached(self) -> bool | None:
        """Whether ours is as good beside this peer as it has to be; None where nothing is asked."""
        return None if self.target is None or self.times is None else self.times >= self.target

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if self.median is None:
            return self.section, self.what, self.who, self.note, "", "", ""
        spread = f"{_number(min(self.rounds))} .. {_number(max(self.rounds))}" if len(self.rounds) > 1 else ""
        times = "" if self.times is None else f"{self.times:.2f} x"
        target = self.aim if self.target is None else f">= {self.target:g} x {_VERDICT[self.is_reached]}"
        value = f"{_number(self.median)} {self.unit}" + (f" ({self.note})" if self.note else "")
        return self.section, self.what, self.who, value, spread, times, target

    def as_json(self) -> dict[str, Any]:
        """The row for programs."""
        return {**asdict(self), "median": self.median, "reached": self.is_reached}


def compare(
    section: str,
    what: str,
    unit: str,
    rounds: dict[str, list[float]],
    *,
    ours: str,
    targets: dict[str, float] | None = None,
    notes: dict[str, str] | None = None,
    lower_is_better: bool = False,
) -> list[Row]:
    """Make the rows of one measurement, ours first, each other with ours beside it.

    `rounds` has the figures by label. A peer with fewer of them than the others failed in a round: it has no
    ratio, and its note says why.
    """
    targets, notes = targets or {}, notes or {}
    labels = sorted({**rounds, **notes}, key=lambda label: label != ours)
    rows = []
    for label in labels:
        figures, mine = rounds.get(label, []), rounds.get(ours, [])
        comparable = label != ours and figures and len(figures) == len(mine)
        times = times_as_good(mine, figures, lower_is_better=lower_is_better) if comparable else None
        rows.append(
            Row(
                section,
                what,
                label,
                unit,
                figures,
                lower_is_better,
                times,
                targets.get(label),
                notes.get(label, ""),
            )
        )
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render(rows: Iterable[Row]) -> str:
    """Return the table as aligned Markdown."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def machine(url: str) -> dict[str, str]:
    """Say what the figures were measured on."""
    with redis.Redis.from_url(url) as client:
        server = client.info("server")
    name = "Valkey" if "valkey_version" in server else "Redis"
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = server.get("valkey_version") or server["redis_version"]
    return {
        "processors": str(processors),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "platform": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "server": f"{name} {number}, embedded, append-only file",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
