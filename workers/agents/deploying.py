"""The agent that tries out a wheel where nothing else is installed."""

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from conductor.core.enums import AgentType
from conductor.core.models import TaskDefinition
from workers.agents import process
from workers.agents.failure import MESSAGE_LIMIT, WorkFailedError, last_lines
from workers.agents.inputs import flag_input, path_input, text_input, texts_input
from workers.agents.wheel import Wheel, newest_wheel, read_wheel
from workers.agents.work_agent import WorkAgent

Command = list[str | Path]
OUTPUT_LIMIT = 10_000
INVENTORY = (
    "import importlib.metadata as m, json, platform; "
    "print(json.dumps([platform.python_version(), {d.name: d.version for d in m.distributions()}]))"
)
IMPORT = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"


class DeployingAgent(WorkAgent):
    """Installs a wheel into a fresh virtual environment and runs its entry point, or imports it.

    Input: `wheel`, a path (default: the newest in `dist` of the `workspace`); `entry_point`, a console script
    of the wheel or a module to import (default: a console script of the wheel, the one with its name if it
    has several, after an import of its modules; of a wheel without scripts only these are imported);
    `arguments` of the script (["--help"]); `keep` (false: the environment is removed afterwards).

    The environment has this interpreter, the wheel and what pip installs for it from wherever pip is
    configured; a wheel without dependencies needs no network. Output: `environment` (python, and path if
    it is kept), `installed` (name, version), `dependencies` (name to version), `imported` (modules),
    `import_ok`, `entry_point` (None: nothing was run), `arguments`, `exit_code`, `output` (the end of what
    the script wrote, at most 10,000 characters of each stream), `duration_seconds`.
    """

    agent_type_served = AgentType.DEPLOYING
    inputs = ("wheel", "workspace", "entry_point", "arguments", "keep")

    async def _do(self, task: TaskDefinition) -> dict[str, Any]:
        data, started = task.input_data, time.monotonic()
        wheel = await asyncio.to_thread(_wheel, data)
        script, modules = _target(wheel, text_input(data, "entry_point"))
        arguments = texts_input(data, "arguments", ["--help"])
        keep = flag_input(data, "keep")
        async with _scratch(self.config.data_dir / "environments" if keep else None) as scratch:
            environment = _Environment(scratch)
            await environment.create()
            output = await environment.install(wheel)
            if keep:
                output["environment"]["path"] = str(environment.path)
            await environment.import_modules(modules, output)
            if script is not None:
                await environment.run(script, arguments, output)
            return output | {"duration_seconds": round(time.monotonic() - started, 3)}


class _Environment:
    """A virtual environment in a directory of its own, beside an empty one to run things in."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "environment"
        self._python = self.path / "bin" / "python"
        self._elsewhere = scratch / "empty"

    async def create(self) -> None:
        # Without pip, which ours can be in place of: Debian has no ensurepip to bring it.
        self._elsewhere.mkdir()
        command: Command = [sys.executable, "-P", "-m", "venv", "--without-pip", self.path]
        done = await process.run(command, cwd=self._elsewhere)
        if done.code != 0:
            raise WorkFailedError(
                f"no virtual environment can be made: {last_lines(done.stderr or done.stdout)}"
            )

    async def install(self, wheel: Wheel) -> dict[str, Any]:
        """Install the wheel and what it depends on; what is there then, as output."""
        pip: Command = [sys.executable, "-P", "-m", "pip", "--python", self._python, "--no-input", "--quiet"]
        command: Command = [*pip, "--disable-pip-version-check", "install", "--no-user", wheel.path]
        done = await process.run(command, cwd=self._elsewhere)
        if done.code != 0:
            raise WorkFailedError(f"pip cannot install {wheel.path.name}: {_reason(done)}")
        listed = await process.run([self._python, "-I", "-c", INVENTORY], cwd=self._elsewhere)
        python, found = json.loads(listed.stdout)
        version = found.pop(wheel.name, wheel.version)
        return {
            "environment": {"python": python, "path": None},
            "installed": {"name": wheel.name, "version": version},
            "dependencies": dict(sorted(found.items())),
            "imported": [],
            "import_ok": False,
            "entry_point": None,
            "arguments": [],
            "exit_code": None,
            "output": "",
        }

    async def import_modules(self, modules: list[str], output: dict[str, Any]) -> None:
        command: Command = [self._python, "-I", "-c", IMPORT, *modules]
        done = await process.run(command, cwd=self._elsewhere)
        if done.code != 0:
            output["output"] = _tail(done)
            raise WorkFailedError(f"{', '.join(modules)} cannot be imported: {_ending(done)}", output)
        output |= {"imported": modules, "import_ok": True}

    async def run(self, script: str, arguments: list[str], output: dict[str, Any]) -> None:
        command: Command = [self._python.with_name(script), *arguments]
        done = await process.run(command, cwd=self._elsewhere)
        output |= {"entry_point": script, "arguments": arguments, "exit_code": done.code}
        output["output"] = _tail(done)
        if done.code != 0:
            raise WorkFailedError(f"{' '.join([script, *arguments])} failed: {_ending(done)}", output)


@contextlib.asynccontextmanager
async def _scratch(kept_in: Path | None) -> AsyncIterator[Path]:
    """A directory that is removed afterwards, unless it is to be kept and the task's output tells where."""
    if kept_in is not None:
        await asyncio.to_thread(kept_in.mkdir, parents=True, exist_ok=True)
    # Not in a thread: one that is cancelled meanwhile would leave the directory behind.
    scratch = Path(tempfile.mkdtemp(prefix="conductor-deploying-", dir=kept_in))
    kept = False
    try:
        yield scratch
        kept = kept_in is not None
    except WorkFailedError as error:
        kept = kept_in is not None and "environment" in error.output
        raise
    finally:
        if not kept:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _wheel(data: dict[str, Any]) -> Wheel:
    path, workspace = path_input(data, "wheel"), path_input(data, "workspace")
    if path is None:
        if workspace is None:
            raise WorkFailedError(
                "the task's input has no 'wheel': set it to the path of one, or 'workspace' to a directory "
                "that has one in its 'dist'"
            )
        path = newest_wheel(workspace / "dist")
    return read_wheel(path)


def _target(wheel: Wheel, entry_point: str | None) -> tuple[str | None, list[str]]:
    """The script to run, if one is, and the modules to import before."""
    if entry_point is None:
        return wheel.main_script, wheel.modules
    if entry_point in wheel.scripts:
        return entry_point, wheel.modules
    if all(part.isidentifier() for part in entry_point.split(".")):
        return None, [entry_point]
    raise WorkFailedError(
        f"the task's input 'entry_point' is {entry_point!r}, which is no module and none of the console "
        f"scripts of {wheel.path.name} ({', '.join(wheel.scripts) or 'it has none'})"
    )


def _reason(done: process.Finished) -> str:
    """What pip says is wrong, in one line where it does."""
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    if any("No matching distribution" in line or "Could not find" in line for line in errors):
        needed = errors[-1].removeprefix("No matching distribution found for ")
        return (
            f"it depends on {needed}, which pip does not find where it is configured to look: "
            "set PIP_INDEX_URL or PIP_FIND_LINKS for the agent"
        )
    return "; ".join(errors)[:MESSAGE_LIMIT] or last_lines(done.stderr or done.stdout)


def _ending(done: process.Finished) -> str:
    how = f"it was ended by {done.signal_name}" if done.signal_name else f"exit code {done.code}"
    said = last_lines(done.stderr or done.stdout, 3)
    return f"{how}: {said}" if said else how


def _tail(done: process.Finished) -> str:
    return done.stdout[-OUTPUT_LIMIT:] + done.stderr[-OUTPUT_LIMIT:]
