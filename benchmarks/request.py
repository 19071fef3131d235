"""(b) requests to a live subscriber in another process."""

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.harness import Crew, Plan, interleave, wait_for
from benchmarks.lag import quantile
from benchmarks.peers import BUS_PEERS, OURS, Entry
from benchmarks.table import Row, compare

_NAMES = (OURS, "faststream", "faststream-wide", "redis")
_ONE_BY_ONE = 500
_AT_64 = 1_000
# Connections matter only where there are many requests at once.
_ONLY_MANY = ("faststream-wide",)
_AT_1000 = 1_000


@dataclass
class _Figures:
    """What the rounds of one peer gave."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    at_64: list[dict[str, Any]] = field(default_factory=list)
    at_1000: list[dict[str, Any]] = field(default_factory=list)


class _Pair:
    """An asker and a responder, each in a process of its own."""

    def __init__(self, crew: Crew, entry: Entry, url: str) -> None:
        channel = f"benchmark:request:{entry.name}"
        self.entry = entry
        self.figures = _Figures()
        self.responder = crew.child("responder", entry.name, url, channel)
        self.asker = crew.child("asker", entry.name, url, channel)

    def warm_up(self) -> None:
        self.responder.call("ping")
        wait_for(
            lambda: self.asker.call("in_flight", count=1, width=1)["answered"],
            f"{self.entry.label}: the first answer",
        )
        self.asker.call("one_by_one", count=20)

    def run(self, plan: Plan) -> None:
        if self.entry.name not in _ONLY_MANY:
            self._run_one_by_one(plan)
        if not any(report["error"] for report in self.figures.at_64):
            self.figures.at_64.append(self.asker.call("in_flight", count=plan.size(_AT_64), width=64))

    def _run_one_by_one(self, plan: Plan) -> None:
        took = self.asker.call("one_by_one", count=plan.size(_ONE_BY_ONE))
        self.figures.p50.append(1000 * quantile(took, 0.5))
        self.figures.p99.append(1000 * quantile(took, 0.99))

    def run_thousand(self, plan: Plan) -> None:
        count = plan.size(_AT_1000)
        self.figures.at_1000.append(self.asker.call("in_flight", count=count, width=count))


def measure(plan: Plan) -> list[Row]:
    """One at a time, 64 and 1,000 in flight."""
    entries = [entry for entry in BUS_PEERS if entry.name in _NAMES]
    absent = {entry.label: "skipped: not installed" for entry in entries if not entry.is_installed}
    with Crew() as crew:
        pairs = {entry.name: _Pair(crew, entry, plan.url) for entry in entries if entry.is_installed}
        for pair in pairs.values():
            pair.warm_up()
        for name in interleave(pairs, plan.rounds):
            pairs[name].run(plan)
        # Last, because a peer that fails here may not be itself afterwards.
        for name in interleave(pairs, 1 if plan.quick else 3):
            pairs[name].run_thousand(plan)
    figures = {pair.entry.label: pair.figures for pair in pairs.values()}
    return _rows(figures, absent)


def _rows(figures: dict[str, _Figures], absent: dict[str, str]) -> list[Row]:
    p50 = {label: found.p50 for label, found in figures.items() if found.p50}
    p99 = {label: found.p99 for label, found in figures.items() if found.p99}
    few = {label: note for label, note in absent.items() if "max_connections" not in label}
    reach = {"FastStream": 1.0}
    latency: dict[str, Any] = {"ours": "Conductor", "lower_is_better": True, "notes": few}
    thousand = {label: found.at_1000 for label, found in figures.items()}
    return [
        *compare("b", "request, one at a time, p50", "ms", p50, targets=reach, **latency),
        *compare("b", "request, one at a time, p99", "ms", p99, **latency),
        *_rate_rows("request, 64 in flight", {label: f.at_64 for label, f in figures.items()}, absent),
        *(_with_aim(row) for row in _rate_rows("request, 1,000 in flight", thousand, absent)),
    ]


def _with_aim(row: Row) -> Row:
    if row.who != "Conductor":
        return row
    return replace(row, aim=f"all answered {'yes' if row.rounds else 'NO'}")


def _rate_rows(what: str, found: dict[str, list[dict[str, Any]]], absent: dict[str, str]) -> list[Row]:
    rates: dict[str, list[float]] = {}
    notes = dict(absent)
    for label, reports in found.items():
        failed = [report for report in reports if report["error"]]
        if failed:
            rates[label] = []
            notes[label] = f"fails: {failed[0]['answered']} answered, then {failed[0]['error']}"
        else:
            rates[label] = [report["answered"] / report["seconds"] for report in reports]
    return compare("b", what, "req/s", rates, ours="Conductor", notes=notes)
