"""The agent that builds a project's wheel."""

import asyncio
import hashlib
import re
import shutil
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

from conductor.core.enums import AgentType
from workers.agents import process
from workers.agents.failure import MESSAGE_LIMIT, WorkFailedError, last_lines
from workers.agents.inputs import path_input
from workers.agents.tool_agent import ToolAgent
from workers.agents.workspace import temporary_copy

OUTPUT_LIMIT = 1024 * 1024
EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Exit|Interrupt|Invalid\w*)\b.*")


class DevOpsAgent(ToolAgent):
    """Builds a wheel with the project's own backend, from what is installed: nothing is downloaded.

    Input besides the common one: `output_dir`, outside the project; by default `dist` of the workspace,
    without one a new directory in data_dir/artifacts. Output: `wheel` (its file name), `path`,
    `size_bytes`, `sha256`, `files` (how many are in it).
    """

    agent_type_served = AgentType.DEVOPS
    inputs = (*ToolAgent.inputs, "output_dir")

    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        if not (root / "pyproject.toml").is_file() and not (root / "setup.py").is_file():
            raise WorkFailedError(
                "the project cannot be built: it has neither a pyproject.toml nor a setup.py"
            )
        target = self._output_dir(data)
        async with temporary_copy(root) as copy:
            built = await _build(copy, copy.parent / "dist")
            return await asyncio.to_thread(_deliver, built, target)

    def _output_dir(self, data: dict[str, Any]) -> Path:
        project, workspace = path_input(data, "project"), path_input(data, "workspace")
        chosen = path_input(data, "output_dir")
        if chosen is None:
            return workspace / "dist" if workspace else self.config.data_dir / "artifacts" / uuid.uuid4().hex
        if project is not None and chosen.resolve().is_relative_to(project.resolve()):
            raise WorkFailedError(
                f"the output_dir {chosen} is in the project, which is never changed: choose another"
            )
        return chosen


async def _build(source: Path, target: Path) -> Path:
    # -P: a directory `build` beside the source must not be taken for the tool.
    command: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        target,
        source,
    ]
    done = await process.run(command, cwd=source.parent, limit=OUTPUT_LIMIT)
    wheels = await asyncio.to_thread(lambda: sorted(target.glob("*.whl")))
    if done.code != 0 or len(wheels) != 1:
        raise WorkFailedError(f"the build failed: {_reason(done)}")
    return wheels[0]


def _reason(done: process.Finished) -> str:
    """What a person needs of a build's output: missing packages, the last exception, or the last lines."""
    text = f"{done.stdout}\n{done.stderr}"
    missing = re.search(r"(?:Missing|Unmet) dependencies.*:\n((?:[ \t]+.+\n?)+)", text)
    if missing:
        lines = missing[1].splitlines()
        names = ", ".join(line.strip() for line in lines if not line.startswith("\t\t"))
        return f"its build backend needs packages that are not installed where the agent runs: {names}"
    exceptions = [line for line in text.splitlines() if EXCEPTION.match(line)]
    if exceptions:
        return exceptions[-1][:MESSAGE_LIMIT]
    errors = [line for line in text.splitlines() if line.startswith("ERROR ")]
    if errors:
        return "\n".join(errors)[-MESSAGE_LIMIT:].removeprefix("ERROR ")
    return last_lines(text)


def _deliver(built: Path, target: Path) -> dict[str, Any]:
    """Move the wheel to its place, where no reader ever sees half of one."""
    with zipfile.ZipFile(built) as archive:
        files = len(archive.namelist())
    target.mkdir(parents=True, exist_ok=True)
    place, draft = target / built.name, target / f".{built.name}.part"
    shutil.copyfile(built, draft)
    content = draft.read_bytes()
    draft.replace(place)
    return {
        "wheel": place.name,
        "path": str(place),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "files": files,
    }
