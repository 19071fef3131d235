"""Ruff on a directory."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruff import find_ruff_bin  # type: ignore[import-untyped]

from workers.agents import process
from workers.agents.failure import WorkFailedError, last_lines

OUTPUT_LIMIT = 64 * 1024 * 1024
UNREADABLE = frozenset({"invalid-syntax", "E902", "E999"})
SHOWN = 5
BREAKS = re.compile(r"E9|F[567]|F82|PLE|S\d")
TASTE = re.compile(r"E[1235]|W\d|I\d|D\d|Q\d|COM|UP|N8")


async def check(root: Path, *options: str) -> list[dict[str, Any]]:
    """Run `ruff check` and return its findings: file, line, column, code, message, severity, fixable.

    WorkFailedError where ruff cannot run, for example for a wrong configuration.
    """
    command = [find_ruff_bin(), "check", "--no-cache", "--output-format", "json", *options, "."]
    done = await process.run(command, cwd=root, limit=OUTPUT_LIMIT)
    if done.code not in (0, 1):
        raise WorkFailedError(f"ruff cannot check the project: {last_lines(done.stderr)}")
    if done.truncated:
        raise WorkFailedError(f"ruff found more than fits in {OUTPUT_LIMIT // 2**20} MiB of output")
    return [_finding(root, raw) for raw in json.loads(done.stdout or "[]")]


async def format_files(root: Path) -> None:
    """Run `ruff format`; WorkFailedError where it cannot."""
    done = await process.run([find_ruff_bin(), "format", "--no-cache", "."], cwd=root)
    if done.code != 0:
        raise WorkFailedError(f"ruff cannot format the project: {last_lines(done.stderr)}")


async def list_files(root: Path) -> list[Path]:
    """The files that ruff looks at, by its configuration; absolute."""
    done = await process.run(
        [find_ruff_bin(), "check", "--no-cache", "--show-files", "."], cwd=root, limit=OUTPUT_LIMIT
    )
    if done.code != 0:
        raise WorkFailedError(f"ruff cannot check the project: {last_lines(done.stderr)}")
    return sorted({root / line for line in done.stdout.splitlines() if line})


def require_readable(findings: Sequence[dict[str, Any]], output: dict[str, Any] | None = None) -> None:
    """Raise WorkFailedError naming the files that are not Python text, if there are any."""
    first: dict[str, dict[str, Any]] = {}
    for finding in findings:
        if finding["code"] in UNREADABLE:
            first.setdefault(finding["file"], finding)
    if not first:
        return
    lines = [f"{f['file']}:{f['line']}:{f['column']}: {f['message']}" for f in list(first.values())[:SHOWN]]
    if len(first) > SHOWN:
        lines.append(f"and {len(first) - SHOWN} more files")
    what = "a syntax error" if len(first) == 1 else f"syntax errors in {len(first)} files"
    if all(finding["code"] == "E902" for finding in first.values()):
        what = "a file that cannot be read" if len(first) == 1 else f"{len(first)} files that cannot be read"
    raise WorkFailedError(f"the project has {what}: " + "; ".join(lines), output)


def _finding(root: Path, raw: dict[str, Any]) -> dict[str, Any]:
    code = raw["code"] or "invalid-syntax"
    location = raw["location"] or {"row": 1, "column": 1}
    fix = raw["fix"] or {}
    return {
        "tool": "ruff",
        "file": relative(root, raw["filename"]),
        "line": location["row"],
        "column": location["column"],
        "code": code,
        "message": raw["message"],
        "severity": _severity(code),
        "fixable": fix.get("applicability") == "safe",
    }


def _severity(code: str) -> str:
    """Tell what breaks, what smells and what is taste: ruff 0.17 calls everything an error."""
    if code in UNREADABLE or BREAKS.match(code):
        return "error"
    return "info" if TASTE.match(code) else "warning"


def relative(root: Path, path: str | Path) -> str:
    """A path as a person in `root` would write it."""
    full = root / path
    for base in (root, root.resolve()):
        if full.is_relative_to(base):
            return str(full.relative_to(base))
    return str(full)
