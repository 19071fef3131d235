"""The agent that makes test data for a project's functions."""

import asyncio
import json
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from conductor.core.enums import AgentType
from workers.agents import process
from workers.agents.cases import Cases
from workers.agents.failure import WorkFailedError, last_lines
from workers.agents.inputs import count_input, path_input, text_input
from workers.agents.modules import find_modules, import_path
from workers.agents.tool_agent import ToolAgent

RUNNER = Path(__file__).with_name("case_runner.py")
OUTPUT = "tests/data/cases.json"
EXAMPLES, SEED, CALL_SECONDS = 20, 1, 5
SKIPPED_LIMIT = 1000


class TestDataAgent(ToolAgent):
    """Calls functions with inputs that Hypothesis makes and writes what came of it as a file of cases.

    Input besides the common one: `module` (a dotted name, or a path in the project; of a package all
    modules; default: all modules of the project's packages), `examples` (20, at most so many a function),
    `seed` (1; the same seed gives the same file, as long as the code is the same), `call_seconds` (5, for one
    call or one import) and `output` (tests/data/cases.json, in the workspace; without a workspace the file is
    kept in data_dir/artifacts).

    Called are the public functions that a module itself defines, synchronous, each parameter of which has
    a type hint that Hypothesis can make values for; `*args` and `**kwargs` stay empty. While a call runs,
    writing files, opening connections and starting processes are refused and the function is skipped: a
    net, not a sandbox.

    The file has `cases`: for each function a list of {arguments, returns} or {arguments, raises, message},
    values as Python writes them (`repr`). Output: `cases_file`, `functions` (how many cases each has),
    `cases` (how many in all), `skipped` (at most 1000: name of the function or module, and reason).
    """

    __test__ = False  # pytest would collect it by its name
    agent_type_served = AgentType.TEST_DATA
    inputs = (*ToolAgent.inputs, "module", "examples", "seed", "call_seconds", "output")
    exclusive = True

    async def _work(self, root: Path, data: dict[str, Any]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "modules": await asyncio.to_thread(find_modules, root, text_input(data, "module")),
            "examples": count_input(data, "examples", EXAMPLES),
            "seed": count_input(data, "seed", SEED, least=0),
            "call_seconds": count_input(data, "call_seconds", CALL_SECONDS),
        }
        target = self._target(root, data)
        cases = Cases()
        with tempfile.TemporaryDirectory(prefix="conductor-cases-", ignore_cleanup_errors=True) as scratch:
            while not cases.complete:
                await _run(root, Path(scratch), request | {"done": cases.names}, cases)
        if len(cases.broken_modules) == len(request["modules"]):
            name, reason = next(iter(cases.skipped.items()))
            raise WorkFailedError(f"none of the project's modules can be used: {name}: {reason}")
        content = {"seed": request["seed"], "cases": cases.found, "skipped": cases.skipped_list()}
        await asyncio.to_thread(_write, target, json.dumps(content, indent=1) + "\n")
        return {
            "cases_file": str(target),
            "functions": {name: len(found) for name, found in cases.found.items()},
            "cases": sum(map(len, cases.found.values())),
            "skipped": cases.skipped_list()[:SKIPPED_LIMIT],
        }

    def _target(self, root: Path, data: dict[str, Any]) -> Path:
        name = text_input(data, "output") or OUTPUT
        if path_input(data, "workspace") is None:
            return self.config.data_dir / "artifacts" / uuid.uuid4().hex / Path(name).name
        target = Path(os.path.normpath(root / name))
        if target == root or not target.resolve().is_relative_to(root.resolve()):
            raise WorkFailedError(f"the task's input 'output' is {name!r}, which is not in the workspace")
        return target


async def _run(root: Path, scratch: Path, request: dict[str, Any], cases: Cases) -> None:
    """Go through what is not done yet; what ends the process is skipped, and the next run goes on."""
    orders, report = scratch / "request.json", scratch / "report.jsonl"
    # A file, since arguments are limited in length.
    await asyncio.to_thread(orders.write_text, json.dumps(request), encoding="utf-8")
    await asyncio.to_thread(report.unlink, missing_ok=True)
    environment = {
        "PYTHONPATH": import_path(root),
        "PYTHONHASHSEED": "0",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
    }
    command = [sys.executable, str(RUNNER), str(report), str(orders)]
    done = await process.run(command, cwd=root, env=environment)
    known = len(cases.names)
    await asyncio.to_thread(cases.read, report)
    if cases.complete:
        return
    if done.code == 1 and "Timeout (" in done.stderr:
        cases.skip_current(f"did not end within {request['call_seconds']} s")
    else:
        ending = f"by {done.signal_name}" if done.signal_name else f"with code {done.code}"
        cases.skip_current(f"ended the process {ending}")
    if len(cases.names) == known:
        raise WorkFailedError(f"no cases can be made: {last_lines(done.stderr or done.stdout)}")


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
