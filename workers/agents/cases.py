"""What the runner of cases reports, over as many runs as it takes."""

import json
from pathlib import Path
from typing import Any

Case = dict[str, Any]


class Cases:
    """The cases of each function, and what has none, with the reason.

    Runs of the runner are read one after the other: each leaves out the `names` that are done, and the last
    is complete.
    """

    def __init__(self) -> None:
        self.found: dict[str, list[Case]] = {}
        self.skipped: dict[str, str] = {}
        self.broken_modules: set[str] = set()
        self.complete = False
        self._module: str | None = None
        self._function: str | None = None
        self._called: Case | None = None

    @property
    def names(self) -> list[str]:
        """The functions and modules that need no other run."""
        return [*self.found, *self.skipped]

    def skipped_list(self) -> list[dict[str, str]]:
        """What has no cases, and why."""
        return [{"name": name, "reason": reason} for name, reason in self.skipped.items()]

    def read(self, report: Path) -> None:
        """Take in what one run wrote."""
        self._module = self._function = self._called = None
        if not report.exists():
            return
        with report.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:
                    return  # the last line of a process that was killed
                self._add(entry)

    def skip_current(self, reason: str) -> None:
        """Say why the last run ended before its end: because of what it was doing."""
        if self._function is not None:
            during = f"a call with {_shown(self._called)}" if self._called else "making its arguments"
            self._skip(self._function, f"{during} {reason}")
        elif self._module is not None:
            self._skip_module(self._module, f"importing it {reason}")

    def _add(self, entry: dict[str, Any]) -> None:
        if "module" in entry:
            self._module, self._function = entry["module"], None
        elif "function" in entry:
            self._function, self._called = entry["function"], None
            self.found[entry["function"]] = []
        elif "arguments" in entry:
            self._called = entry["arguments"]
        elif "returns" in entry or "raises" in entry:
            if self._function is not None:
                self.found[self._function].append({"arguments": self._called, **entry})
            self._called = None
        elif "skipped" in entry:
            if entry["skipped"] == self._module:
                self._skip_module(entry["skipped"], entry["reason"])
            else:
                self._skip(entry["skipped"], entry["reason"])
        elif "end" in entry:
            self.complete = True

    def _skip(self, name: str, reason: str) -> None:
        self.found.pop(name, None)
        self.skipped[name] = reason

    def _skip_module(self, name: str, reason: str) -> None:
        self.broken_modules.add(name)
        self._skip(name, reason)


def _shown(arguments: Case) -> str:
    return f"({', '.join(f'{name}={value}' for name, value in arguments.items())})"[:500]
