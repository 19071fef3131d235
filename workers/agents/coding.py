"""The agent that repairs and formats code."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conductor.core.enums import AgentType
from conductor.core.messages import FeedbackPayload
from workers.agents import diff, linting
from workers.agents.failure import WorkFailedError
from workers.agents.tool_agent import ToolAgent

DIFF_LIMIT = 1024 * 1024


class CodingAgent(ToolAgent):
    """Lets ruff fix what it safely can and format the rest, and hands back the diff.

    Input besides the common one: `feedback`, a FeedbackPayload, as a workflow that goes back to development
    gives it. With it, what the safe fixes leave is given to ruff's unsafe ones as well: those that might
    change what the code does, so that the tests should be run after them.

    Output: `diff` (unified, at most 1 MiB, `diff_truncated` says whether it was more), `files_changed`,
    `fixes` (lint findings that are gone), `fixed_codes` (how many of each), `unsafe_fixes` (how many of them
    the unsafe ones mended), `remaining` (findings that stay), `workspace` (where the files are; None where
    the input named none, since the copy is gone then).
    """

    agent_type_served = AgentType.CODING
    inputs = (*ToolAgent.inputs, "feedback")
    exclusive = True

    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        feedback = _feedback(data)
        found = await linting.check(root)
        linting.require_readable(found)
        files = await linting.list_files(root)
        before = await asyncio.to_thread(diff.read_files, files)
        left = await _mend(root, "--fix")
        unsafe_fixes = 0
        if feedback is not None and left:
            safely_left = len(left)
            left = await _mend(root, "--fix", "--unsafe-fixes")
            unsafe_fixes = safely_left - len(left)
        after = await asyncio.to_thread(diff.read_files, files)
        text, changed = await asyncio.to_thread(diff.unified, root, before, after)
        fixed = Counter(f["code"] for f in found) - Counter(f["code"] for f in left)
        return {
            "diff": text[:DIFF_LIMIT],
            "diff_truncated": len(text) > DIFF_LIMIT,
            "files_changed": changed,
            "fixes": fixed.total(),
            "fixed_codes": dict(sorted(fixed.items())),
            "unsafe_fixes": unsafe_fixes,
            "remaining": len(left),
            "workspace": str(root) if data.get("workspace") else None,
        }


async def _mend(root: Path, *options: str) -> list[dict[str, Any]]:
    """Fix and format; what is left, counted last: formatting mends some of it too, such as long lines."""
    await linting.check(root, *options)
    await linting.format_files(root)
    return await linting.check(root)


def _feedback(data: dict[str, Any]) -> FeedbackPayload | None:
    given = data.get("feedback")
    if given is None:
        return None
    try:
        return FeedbackPayload.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(["feedback", *map(str, problem["loc"])])
        raise WorkFailedError(f"the task's input '{where}' cannot be used: {problem['msg']}") from None
