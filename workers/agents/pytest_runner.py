"""Runs pytest in the working directory and writes what happened as JSON lines, each as it happens.

A script, started by path: `python pytest_runner.py REPORT ARGUMENTS...`. It imports nothing of ours, so
that a project with packages of the same names is tested as it is. Lines: {"start": nodeid}, then
{"node", "when", "outcome", "message"} for each phase of a test and each failed collection, {"collected":
n}. The exit code is pytest's.
"""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

MESSAGE_LIMIT = 4000


class Report:
    """A pytest plugin; with pytest-xdist it sees the reports of all its workers."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(start=nodeid)

    def pytest_collection_finish(self, session: Any) -> None:
        self._write(collected=len(session.items))

    def pytest_runtest_logreport(self, report: Any) -> None:
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if outcome == "skipped" else "xpassed"
        self._write(node=report.nodeid, when=report.when, outcome=outcome, message=_message(report))

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self._write(node=report.nodeid, when="collect", outcome=report.outcome, message=_message(report))


def _message(report: Any) -> str:
    """The exception and its text where pytest knows it, else its whole explanation."""
    if report.outcome != "failed":
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return str(text)[-MESSAGE_LIMIT:] if crash is None else str(text)[:MESSAGE_LIMIT]


def main(report: str, arguments: list[str]) -> int:
    # In place of this script's directory, whose modules are not for the project.
    sys.path[0] = str(Path.cwd())
    import pytest

    with Path(report).open("w", encoding="utf-8") as file:
        return int(pytest.main(arguments, plugins=[Report(file)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
