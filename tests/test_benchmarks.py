"""The benchmark runs and leaves no figure out; what the figures are is not a test's business."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks import peers

ROOT = Path(__file__).parents[1]
MEASURED = {
    "a": {"publish, 500 bytes, 1 subscriber, 100 coroutines"},
    "b": {
        "request, one at a time, p50",
        "request, one at a time, p99",
        "request, 64 in flight",
        "request, 1,000 in flight",
    },
    "c": {"task with result", "task, one at a time, p50"},
    "d": {"save, one by one", "save, 100 at once", "get, one by one", "get, 100 at once", "list of 2,000"},
    "e": {"event loop's longest wait, publisher", "event loop's longest wait, subscriber"},
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_quick_run_gives_every_figure() -> None:
    done = run("--quick", "--json")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"processors", "Python", "server", "libraries", "command"} <= report["machine"].keys()
    for section, expected in MEASURED.items():
        rows = [row for row in report["rows"] if row["section"] == section]
        for what in expected:
            ours = [row for row in rows if row["what"] == what and row["who"].startswith("Conductor")]
            assert ours, f"{section}: {what}: nothing of ours"
            assert all(figure > 0 for row in ours for figure in row["rounds"]), ours
            assert all(row["rounds"] for row in ours), ours
        for row in rows:
            assert row["rounds"] or row["note"], f"neither a figure nor a reason: {row}"
    skipped = {row["who"] for row in report["rows"] if "not installed" in row["note"]}
    assert all(who.startswith("FastStream") for who in skipped)
    assert bool(skipped) == (find_spec("faststream") is None)


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    done = run("--only", "a,z")

    assert done.returncode == 2
    assert "z: not one of a, b, c, d, e" in done.stderr


def test_a_peer_whose_package_is_missing_is_not_installed() -> None:
    assert not peers.is_installed("no_such_package")
    assert not peers.is_installed("no_such_package.module")
    assert peers.is_installed("redis")
