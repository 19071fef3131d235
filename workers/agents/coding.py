"""The agent that repairs and formats code."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from conductor.core.enums import AgentType
from workers.agents import diff, linting
from workers.agents.tool_agent import ToolAgent

DIFF_LIMIT = 1024 * 1024


class CodingAgent(ToolAgent):
    """Lets ruff fix what it safely can and format the rest, and hands back the diff.

    Output: `diff` (unified, at most 1 MiB, `diff_truncated` says whether it was more), `files_changed`,
    `fixes` (lint findings that are gone), `fixed_codes` (how many of each), `remaining` (findings that
    stay), `workspace`.
    """

    agent_type_served = AgentType.CODING
    exclusive = True

    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        found = await linting.check(root)
        linting.require_readable(found)
        files = await linting.list_files(root)
        before = await asyncio.to_thread(diff.read_files, files)
        await linting.check(root, "--fix")
        await linting.format_files(root)
        # Counted last: formatting mends some of what the fixes left, such as long lines.
        left = await linting.check(root)
        after = await asyncio.to_thread(diff.read_files, files)
        text, changed = await asyncio.to_thread(diff.unified, root, before, after)
        fixed = Counter(f["code"] for f in found) - Counter(f["code"] for f in left)
        return {
            "diff": text[:DIFF_LIMIT],
            "diff_truncated": len(text) > DIFF_LIMIT,
            "files_changed": changed,
            "fixes": fixed.total(),
            "fixed_codes": dict(sorted(fixed.items())),
            "remaining": len(left),
            "workspace": str(root),
        }
