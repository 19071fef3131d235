"""The agent that looks for what a reviewer would point at."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conductor.core.enums import AgentType
from workers.agents import linting, process
from workers.agents.failure import WorkFailedError, last_lines
from workers.agents.inputs import count_input
from workers.agents.tool_agent import ToolAgent

COMPLEXITY_THRESHOLD = 10
FINDINGS_LIMIT = 1000


class ReviewAgent(ToolAgent):
    """Reports ruff's findings and the functions that are too complex, as data.

    Input besides the common one: `complexity_threshold` (10; functions above it are findings),
    `max_findings` (1000). Output: `findings` (tool, file, line, column, code, message, severity of
    error, warning and info, fixable), counts `findings_total`, `by_severity`, `by_code`, and
    `complexity` (threshold, functions, average, maximum, over).
    """

    agent_type_served = AgentType.REVIEW
    inputs = (*ToolAgent.inputs, "complexity_threshold", "max_findings")

    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        threshold = count_input(data, "complexity_threshold", COMPLEXITY_THRESHOLD)
        limit = count_input(data, "max_findings", FINDINGS_LIMIT)
        lint = await linting.check(root)
        functions = await _functions(root)
        over = [function for function in functions if function["complexity"] > threshold]
        findings = lint + [_finding(function, threshold) for function in over]
        findings.sort(key=lambda finding: (finding["file"], finding["line"], finding["column"]))
        values = [function["complexity"] for function in functions]
        output = {
            "findings": findings[:limit],
            "findings_total": len(findings),
            "by_severity": dict(Counter(finding["severity"] for finding in findings)),
            "by_code": dict(sorted(Counter(finding["code"] for finding in findings).items())),
            "complexity": {
                "threshold": threshold,
                "functions": len(functions),
                "average": round(sum(values) / len(values), 2) if values else 0.0,
                "maximum": max(values, default=0),
                "over": over[:limit],
            },
        }
        linting.require_readable(lint, output)
        return output


async def _functions(root: Path) -> list[dict[str, Any]]:
    """Every function and its cyclomatic complexity; files that cannot be parsed are ruff's to report."""
    command = [sys.executable, "-P", "-m", "radon", "cc", "--json", "."]
    done = await process.run(command, cwd=root, limit=linting.OUTPUT_LIMIT)
    if done.code != 0 or done.truncated:
        raise WorkFailedError(f"radon cannot measure the project: {last_lines(done.stderr)}")
    return [
        _function(linting.relative(root, file), block)
        for file, blocks in json.loads(done.stdout or "{}").items()
        if isinstance(blocks, list)
        for block in _with_closures(blocks)
        if block["type"] in ("function", "method")
    ]


def _with_closures(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield block
        yield from _with_closures(block.get("closures", []))


def _function(file: str, block: dict[str, Any]) -> dict[str, Any]:
    owner = f"{block['classname']}." if block.get("classname") else ""
    return {
        "file": file,
        "line": block["lineno"],
        "column": block["col_offset"] + 1,
        "function": f"{owner}{block['name']}",
        "complexity": block["complexity"],
        "rank": block["rank"],
    }


def _finding(function: dict[str, Any], threshold: int) -> dict[str, Any]:
    name, complexity = function["function"], function["complexity"]
    return {
        "tool": "radon",
        **{key: function[key] for key in ("file", "line", "column")},
        "code": "complexity",
        "message": f"{name} has a cyclomatic complexity of {complexity}, more than {threshold}",
        "severity": "warning",
        "fixable": False,
    }
