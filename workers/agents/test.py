"""The agent that runs a project's tests."""

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from conductor.core.enums import AgentType
from workers.agents import process
from workers.agents.failure import MESSAGE_LIMIT, WorkFailedError, last_lines
from workers.agents.inputs import texts_input
from workers.agents.modules import import_path
from workers.agents.tool_agent import ToolAgent

RUNNER = Path(__file__).with_name("pytest_runner.py")
FAILURES_LIMIT = 200
SHOWN = 5
PASSED_CODE, FAILED_CODE, INTERRUPTED_CODE, NO_TESTS_CODE = 0, 1, 2, 5


class TestAgent(ToolAgent):
    """Runs pytest with this interpreter and reports counts and failures.

    Input besides the common one: `arguments`, more arguments for pytest, such as ["-k", "fast"]. Output:
    `collected`, `passed`, `failed`, `errors`, `skipped`, `xfailed`, `xpassed`, `failures` (at most 200:
    node, kind of failed and error, message) and `duration_seconds` of pytest. Failing tests make a
    FAILED result.
    """

    __test__ = False  # pytest would collect it by its name
    agent_type_served = AgentType.TEST
    inputs = (*ToolAgent.inputs, "arguments")
    exclusive = True

    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        arguments = texts_input(data, "arguments", [])
        with tempfile.TemporaryDirectory(prefix="conductor-test-", ignore_cleanup_errors=True) as scratch:
            report = Path(scratch) / "report.jsonl"
            started = time.monotonic()
            done = await _pytest(root, report, arguments)
            tally = await asyncio.to_thread(_Tally, report)
            output = tally.output() | {"duration_seconds": round(time.monotonic() - started, 3)}
        _require_success(done, tally, output)
        return output


async def _pytest(root: Path, report: Path, arguments: list[str]) -> process.Finished:
    options = ["-p", "no:cacheprovider", "--rootdir", str(root), f"--basetemp={report.parent / 'tmp'}"]
    command = [sys.executable, str(RUNNER), str(report), *options, *arguments]
    return await process.run(command, cwd=root, env={"PYTHONPATH": import_path(root)})


class _Tally:
    """What the runner's report says."""

    def __init__(self, report: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, str]] = []
        self.collected: int | None = None
        self.running: str | None = None
        if report.exists():
            with report.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    self._add(line)

    def _add(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # the last line of a pytest that was killed
        if "start" in entry:
            self.running = entry["start"]
        elif "collected" in entry:
            self.collected = entry["collected"]
        else:
            self._add_outcome(entry["node"], entry["when"], entry["outcome"], entry["message"])

    def _add_outcome(self, node: str, when: str, outcome: str, message: str) -> None:
        if when == "teardown":
            self.running = None
        if outcome == "failed":
            kind = "failed" if when == "call" else "error"
            self.counts["failed" if when == "call" else "errors"] += 1
            if len(self.failures) < FAILURES_LIMIT:
                self.failures.append({"node": node, "kind": kind, "message": message})
        elif when == "call" or outcome in ("skipped", "xfailed", "xpassed"):
            self.counts[outcome] += 1

    def output(self) -> dict[str, Any]:
        names = ("passed", "failed", "errors", "skipped", "xfailed", "xpassed")
        collected = self.collected if self.collected is not None else self.counts.total()
        return {"collected": collected} | {n: self.counts[n] for n in names} | {"failures": self.failures}

    def headline(self) -> str:
        shown = [f"{f['node']}: {_first_line(f['message'])}" for f in self.failures[:SHOWN]]
        total = self.counts["failed"] + self.counts["errors"]
        if total > SHOWN:
            shown.append(f"and {total - SHOWN} more")
        return "; ".join(shown)[:MESSAGE_LIMIT]


def _require_success(done: process.Finished, tally: _Tally, output: dict[str, Any]) -> None:
    counts = tally.counts
    if (
        done.code == PASSED_CODE
        and counts["passed"] + counts["skipped"] + counts["xfailed"] + counts["xpassed"]
    ):
        return
    if done.code in (PASSED_CODE, NO_TESTS_CODE):
        message = "pytest found no tests: add files named test_*.py with functions named test_*"
    elif done.code == FAILED_CODE:
        total = counts["passed"] + counts["failed"]
        parts = [f"{counts['failed']} of {total} tests failed"] if counts["failed"] else []
        parts += [f"{counts['errors']} had errors outside the test itself"] if counts["errors"] else []
        message = f"{' and '.join(parts) or 'pytest failed'}: {tally.headline()}"
    elif done.code == INTERRUPTED_CODE and counts["errors"]:
        message = f"pytest cannot collect the tests: {tally.headline()}"
    elif done.signal_name or tally.running:
        during = f" during {tally.running}" if tally.running else ""
        ending = f"was ended by {done.signal_name}" if done.signal_name else f"exited with code {done.code}"
        message = f"pytest {ending}{during}: {last_lines(done.stderr or done.stdout)}"
    else:
        message = f"pytest cannot run: {last_lines(done.stderr or done.stdout)}"
    raise WorkFailedError(message, output)


def _first_line(message: str) -> str:
    """The line that says most: of a collection error the last with an error in it, of a failure the first."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[-1 if errors else 0]
