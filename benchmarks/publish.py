"""(a) publish to one subscriber in another process, and (e) what that does to the event loops."""

import time
from statistics import median

from benchmarks.harness import ChildError, Crew, Plan, interleave, wait_for
from benchmarks.peers import BUS_PEERS, OURS, Entry
from benchmarks.table import Row, compare

_WIDTH = 100
_COUNT = 10_000
_LAG_SECONDS = 1.5
_COLLECT_SECONDS = 30.0
_TARGETS = {"FastStream": 3.0}
_WHAT = "publish, 500 bytes, 1 subscriber, 100 coroutines"
# kombu blocks: there is no loop in it to measure.
_WITH_LOOP = (OURS, "faststream", "redis")
# The same as FastStream as soon as nobody waits for an answer.
_PUBLISHERS = tuple(entry.name for entry in BUS_PEERS if entry.name != "faststream-wide")


class Pair:
    """A publisher and a subscriber, each in a process of its own, on a channel of their own."""

    def __init__(self, crew: Crew, entry: Entry, url: str) -> None:
        channel = f"benchmark:{entry.name}"
        self.entry = entry
        self.subscriber = crew.child("subscriber", entry.name, url, channel)
        self.publisher = crew.child("publisher", entry.name, url, channel)

    def warm_up(self, count: int) -> None:
        """Wait until a message arrives, then run once without measuring."""
        self.subscriber.call("ping")

        def arrives() -> bool:
            self.publisher.call("probe")
            return bool(self.subscriber.call("probes") > 0)

        wait_for(arrives, f"{self.entry.label}: the first message")
        self.run(count)

    def run(self, count: int) -> float:
        """Return the messages a second, from the first publish to the arrival of the last message."""
        self.subscriber.call("expect", count=count)
        began = self.publisher.call("publish", count=count, width=_WIDTH)
        report = self.subscriber.call("collect", within=_COLLECT_SECONDS)
        if report["received"] != count or report["surplus"]:
            raise ChildError(
                f"{self.entry.label}: {report['received']} of {count} came, {report['surplus']} of them twice"
            )
        return count / (report["last"] - began)

    def lag(self, count: int, seconds: float) -> dict[str, dict[str, float]]:
        """Run for over a second with a meter in both loops: p99.9 wants a thousand ticks and more."""
        sides = {"publisher": self.publisher, "subscriber": self.subscriber}
        for child in sides.values():
            child.call("start_lag")
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            self.run(count)
        return {side: child.call("stop_lag") for side, child in sides.items()}


def _pairs(crew: Crew, plan: Plan, names: tuple[str, ...]) -> dict[str, Pair]:
    entries = [entry for entry in BUS_PEERS if entry.name in names]
    return {entry.name: Pair(crew, entry, plan.url) for entry in entries if entry.is_installed}


def _absent(names: tuple[str, ...]) -> dict[str, str]:
    entries = [entry for entry in BUS_PEERS if entry.name in names]
    return {entry.label: "skipped: not installed" for entry in entries if not entry.is_installed}


def measure(plan: Plan) -> list[Row]:
    """(a): the rate at which messages are published, delivered, validated and counted."""
    count = plan.size(_COUNT)
    with Crew() as crew:
        pairs = _pairs(crew, plan, _PUBLISHERS)
        for pair in pairs.values():
            pair.warm_up(max(count // 10, 20))
        rounds: dict[str, list[float]] = {pair.entry.label: [] for pair in pairs.values()}
        for name in interleave(pairs, plan.rounds):
            entry = pairs[name].entry
            rounds[entry.label].append(pairs[name].run(max(20, int(count * entry.share))))
    return compare(
        "a", _WHAT, "msg/s", rounds, ours="Conductor", targets=_TARGETS, notes=_absent(_PUBLISHERS)
    )


def measure_lag(plan: Plan) -> list[Row]:
    """(e): the loops' lag at the full rate of (a), beside an idle loop and the loop of an idle bystander."""
    count = plan.size(_COUNT)
    rows: list[Row] = []
    with Crew() as crew:
        pairs = _pairs(crew, plan, _WITH_LOOP)
        bystander = crew.child("bystander")
        for pair in pairs.values():
            pair.warm_up(max(count // 10, 20))
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for name in interleave(pairs, plan.rounds):
            bystander.call("start_lag")
            for side, lag in pairs[name].lag(count, 0.05 if plan.quick else _LAG_SECONDS).items():
                found.setdefault((pairs[name].entry.label, side), []).append(lag)
            lag = bystander.call("stop_lag")
            found.setdefault((f"idle process beside {pairs[name].entry.label}", "neither"), []).append(lag)
        bystander.call("start_lag")
        bystander.call("idle", seconds=0.2 if plan.quick else 2.0)
        found[("idle process, nothing else runs", "neither")] = [bystander.call("stop_lag")]
    for (label, side), lags in found.items():
        rows.append(_lag_row(label, side, lags))
    rows += [Row("e", "", label, "", note=note) for label, note in _absent(_WITH_LOOP).items()]
    return rows


def _lag_row(label: str, side: str, lags: list[dict[str, float]]) -> Row:
    tail = median(lag["p999"] for lag in lags)
    busy = median(lag["busy_max"] for lag in lags)
    return Row(
        "e",
        f"event loop's longest wait, {side}",
        label,
        "ms",
        [lag["max"] for lag in lags],
        lower_is_better=True,
        note=f"p99.9 {tail:.1f}, own work {busy:.1f}",
    )
