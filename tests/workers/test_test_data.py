"""The test_data agent calls functions with made-up inputs and writes what came of it."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from conductor.core.enums import TaskStatus
from conductor.core.models import TaskResult
from tests.support.cli import processes_of
from tests.support.projects import make_project
from tests.support.waiting import wait_until
from tests.workers.conftest import RunAgent

SHAPES = """\
import random
from dataclasses import dataclass
from os.path import join


@dataclass
class Side:
    length: int


def area(sides: list[Side], /, scale: int = 1) -> int:
    if not sides:
        raise ValueError("no sides")
    product = scale
    while sides:
        product *= sides.pop().length
    return product


def luck(limit: int, *more: int, **others: int) -> float:
    return random.random() + len(more) + len(others)


def leave(code: bool) -> None:
    raise SystemExit(code)


def thing() -> object:
    return object()


def words() -> set[str]:
    return set("the order of these depends on their hashes".split())


def _hidden(number: int) -> int:
    return number
"""

UNCOVERED = """\
from typing import Iterator


class Closed:
    def __init__(self, key):
        self.key = key


def bare(first: int, second):
    pass


def unknown(value: "Nowhere"):
    pass


def closed(value: Closed):
    pass


async def later(value: int):
    pass


def many(value: int) -> Iterator[int]:
    yield value


def fine(value: bool) -> bool:
    return value
"""


async def cases_of(result: TaskResult) -> dict[str, Any]:
    assert result.status is TaskStatus.COMPLETED, result.error_message
    return json.loads(await asyncio.to_thread(Path(result.output_data["cases_file"]).read_text))


def reasons(result: TaskResult) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in result.output_data["skipped"]}


async def test_a_case_is_what_a_function_was_given_and_what_it_returned_or_raised(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", {"demo/shapes.py": SHAPES})
    result = await run_agent("test_data", project=project, module="demo.shapes", examples=30)
    cases = (await cases_of(result))["cases"]
    assert list(cases) == [f"demo.shapes.{name}" for name in ("area", "luck", "leave", "thing", "words")]
    assert result.output_data["functions"] == {name: len(found) for name, found in cases.items()}
    assert result.output_data["cases"] == sum(map(len, cases.values()))
    assert result.output_data["skipped"] == []
    area = cases["demo.shapes.area"]
    assert len(area) == 30
    for case in area:
        assert list(case["arguments"]) == ["sides", "scale"]
        lengths = [side.removeprefix("Side(length=") for side in _items(case["arguments"]["sides"])]
        if lengths:
            product = int(case["arguments"]["scale"])
            for length in lengths:
                product *= int(length)
            assert case["returns"] == str(product)
        else:
            assert (case["raises"], case["message"]) == ("ValueError", "no sides")
    assert all(list(case["arguments"]) == ["limit"] for case in cases["demo.shapes.luck"])
    assert sorted(case["message"] for case in cases["demo.shapes.leave"]) == ["False", "True"]
    assert cases["demo.shapes.thing"] == [{"arguments": {}, "returns": "<object object at 0x...>"}]


def _items(text: str) -> list[str]:
    return [item for item in text.strip("[]").removesuffix(")").split("), ") if item]


async def test_the_same_seed_makes_the_same_file(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", {"demo/shapes.py": SHAPES})
    first, second, other = [
        await cases_of(await run_agent("test_data", project=project, **seed))
        for seed in ({}, {}, {"seed": 2})
    ]
    assert first == second
    assert first["cases"] != other["cases"]


async def test_what_cannot_be_called_is_told_with_the_reason(run_agent: RunAgent, tmp_path: Path) -> None:
    project = make_project(
        tmp_path / "project", {"demo/odd.py": UNCOVERED, "demo/broken.py": "import gone\n"}
    )
    result = await run_agent("test_data", project=project)
    assert result.output_data["functions"] == {"demo.odd.fine": 2}
    told = reasons(result)
    assert told.pop("demo.odd.closed").startswith("no values can be made for 'value: ")
    assert told == {
        "demo.broken": "the module cannot be imported: ModuleNotFoundError: No module named 'gone'",
        "demo.greeting.greet": "its parameter 'name' has no type hint",
        "demo.odd.bare": "its parameter 'second' has no type hint",
        "demo.odd.unknown": "a type hint cannot be resolved: NameError: name 'Nowhere' is not defined",
        "demo.odd.later": "it is asynchronous",
        "demo.odd.many": "it is a generator",
    }
    assert (await cases_of(result))["skipped"] == result.output_data["skipped"]


async def test_code_that_crashes_exits_or_hangs_costs_only_its_own_cases(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    code = (
        "import ctypes, os\n"
        "def before(value: bool) -> bool:\n    return value\n"
        "def crash(value: bool):\n    ctypes.string_at(0)\n"
        "def leave(value: bool):\n    os._exit(7)\n"
        "def hang(value: bool):\n    while value or True: pass\n"
        "def after(value: bool) -> bool:\n    return value\n"
    )
    files: dict[str, str | bytes] = {
        "demo/fatal.py": "import os\nos._exit(3)\n",
        "demo/wild.py": code,
        "demo/greeting.py": "",
    }
    project = make_project(tmp_path / "project", files)
    result = await run_agent("test_data", project=project, call_seconds=5)
    assert result.output_data["functions"] == {"demo.wild.before": 2, "demo.wild.after": 2}
    assert reasons(result) == {
        "demo.fatal": "importing it ended the process with code 3",
        "demo.wild.crash": "a call with (value=False) ended the process by SIGSEGV",
        "demo.wild.leave": "a call with (value=False) ended the process with code 7",
        "demo.wild.hang": "a call with (value=False) did not end within 5 s",
    }


async def test_a_function_with_side_effects_is_stopped_and_has_no_cases(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    code = (
        "import contextlib, os, pathlib, socket, subprocess\n"
        f"TARGET = {str(target)!r}\n"
        "def write(text: str):\n    pathlib.Path(TARGET).write_text(text)\n"
        "def remove(really: bool):\n    with contextlib.suppress(OSError): os.remove(TARGET)\n"
        "def start(number: int):\n    subprocess.run(['rm', TARGET])\n"
        "def connect(port: int):\n    socket.create_connection(('127.0.0.1', 9))\n"
        "def read(number: int) -> str:\n    return pathlib.Path(TARGET).read_text()\n"
    )
    project = make_project(tmp_path / "project", {"demo/acts.py": code})
    result = await run_agent("test_data", project=project, module="demo/acts.py")
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert target.read_text() == "kept"
    assert list(result.output_data["functions"]) == ["demo.acts.read"]
    assert reasons(result) == {
        "demo.acts.write": "it has side effects: open for writing",
        "demo.acts.remove": "it has side effects: os.remove",
        "demo.acts.start": "it has side effects: subprocess.Popen",
        "demo.acts.connect": "it has side effects: socket.getaddrinfo",
    }


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        pytest.param("kit.tools", ["kit.tools.f"], id="dotted name"),
        pytest.param("src/kit/tools.py", ["kit.tools.f"], id="path"),
        pytest.param("kit", ["kit.f", "kit.sub.deep.f", "kit.tools.f"], id="package"),
        pytest.param("src/kit/sub", ["kit.sub.deep.f"], id="path of a package"),
        pytest.param(None, ["alone.f", "kit.f", "kit.sub.deep.f", "kit.tools.f"], id="all"),
        pytest.param("tasks", ["tasks.f"], id="beside the packages"),
    ],
)
async def test_modules_are_chosen_by_name_or_path_or_are_those_of_the_package(
    module: str | None, expected: list[str], run_agent: RunAgent, tmp_path: Path
) -> None:
    function = "def f(value: bool) -> bool:\n    return value\n"
    names = ("alone", "kit/__init__", "kit/tools", "kit/sub/__init__", "kit/sub/deep", "kit/tests/test_it")
    files: dict[str, str | bytes] = {f"src/{name}.py": function for name in names}
    files["src/kit/sub/__init__.py"] = ""
    files |= {"src/kit/__main__.py": "raise SystemExit('run')\n", "tasks.py": function, "setup.py": "1/0\n"}
    project = make_project(tmp_path / "project", files)
    given = {"module": module} if module else {}
    result = await run_agent("test_data", project=project, examples=1, **given)
    assert result.status is TaskStatus.COMPLETED, result.error_message
    assert sorted(result.output_data["functions"]) == expected
    assert result.output_data["skipped"] == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"module": "demo.nowhere"}, "the project has no module 'demo.nowhere'"),
        ({"module": "../other.py"}, "'module' is '../other.py', which is not in the project"),
        ({"module": "not a module"}, "must be a module's name or path, not 'not a module'"),
        ({"module": 7}, "'module' must be a text, not 7"),
        ({"examples": 0}, "'examples' must be a whole number of at least 1, not 0"),
        ({"seed": -1}, "'seed' must be a whole number of at least 0, not -1"),
        ({"call_seconds": "5"}, "'call_seconds' must be a whole number of at least 1, not '5'"),
        ({"output": "../cases.json", "workspace": "ws"}, "'../cases.json', which is not in the workspace"),
    ],
)
async def test_a_wrong_input_is_named(
    wrong: dict[str, Any], said: str, project: Path, run_agent: RunAgent, tmp_path: Path
) -> None:
    given = wrong | ({"workspace": tmp_path / "ws"} if "workspace" in wrong else {})
    result = await run_agent("test_data", project=project, **given)
    assert result.status is TaskStatus.FAILED
    assert said in (result.error_message or "")


async def test_a_project_of_which_no_module_can_be_imported_fails(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", {"demo/__init__.py": "import gone\n"})
    result = await run_agent("test_data", project=project)
    assert result.status is TaskStatus.FAILED
    assert "none of the project's modules can be used: demo: " in (result.error_message or "")
    assert "No module named 'gone'" in (result.error_message or "")


async def test_the_file_is_in_the_workspace_where_the_task_wants_it(
    run_agent: RunAgent, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", {"demo/shapes.py": SHAPES})
    workspace = tmp_path / "workspace"
    result = await run_agent("test_data", project=project, workspace=workspace)
    assert result.output_data["cases_file"] == str(workspace / "tests/data/cases.json")
    result = await run_agent("test_data", project=project, workspace=workspace, output="made.json")
    assert result.output_data["cases_file"] == str(workspace / "made.json")
    assert not list(workspace.rglob(".hypothesis")) + list(workspace.rglob("__pycache__"))


async def test_cancelling_leaves_no_process_and_no_file(
    run_agent: RunAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    code = (
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'running')!r}).touch()\n"
        "def slow(value: bool):\n    time.sleep(600)\n"
    )
    project = make_project(tmp_path / "project", {"demo/slow.py": code})
    running = asyncio.create_task(run_agent("test_data", project=project, call_seconds=600))
    await wait_until((tmp_path / "running").exists)
    assert processes_of(scratch)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert processes_of(scratch) == []
    assert list(scratch.iterdir()) == []
