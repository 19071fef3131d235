"""The fixtures as a user has them: pytest in a project of his own, with Conductor installed."""

import subprocess
import sys
from pathlib import Path

from tests.support.cli import environment, processes_of
from tests.support.projects import write_files

AGENTS = """
import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from conductor import TaskContext, agent


class Text(BaseModel):
    text: str


@agent("coding")
async def shout(data: Text) -> dict:
    return {"text": data.text.upper(), "pid": os.getpid()}


@agent("review")
async def wait_for_file(data: dict[str, str]) -> dict[str, str]:
    with Path(data["began"]).open("a") as began:
        began.write("begun\\n")
    while not Path(data["go"]).exists():
        await asyncio.sleep(0.02)
    return data
"""

ALL = """
import asyncio
import os

import pytest

from conductor import AgentError, ConductorConfig, ConductorError, ConfigurationError, agent
from conductor.testing import AgentNodes
from loud import Text, shout, wait_for_file


@agent("coding")
async def here(data: dict) -> dict:
    return {"pid": os.getpid()}


async def test_in_memory(memory_conductor):
    await memory_conductor.add_agent(shout)
    assert await shout.run(memory_conductor, Text(text="a")) == {"text": "A", "pid": os.getpid()}


async def test_embedded(embedded_conductor, conductor_config):
    assert embedded_conductor.addresses.broker_url.startswith("redis://127.0.0.1:")
    assert await embedded_conductor.state.list_agent_states() == []
    assert (conductor_config.data_dir / "server.json").exists()


async def test_nodes(embedded_conductor, agent_nodes):
    assert await agent_nodes.start(shout, count=2) == ["shout-1", "shout-2"]
    results = [
        await shout.run(embedded_conductor, Text(text=agent_id), agent_id=agent_id, timeout=30)
        for agent_id in ("shout-1", "shout-2")
    ]
    assert [result["text"] for result in results] == ["SHOUT-1", "SHOUT-2"]
    assert len({os.getpid(), *(result["pid"] for result in results)}) == 3
    assert "is ready" in agent_nodes.log("shout-1")
    await agent_nodes.stop("shout-1")
    assert "shout-1" not in {agent.agent_id for agent in await embedded_conductor.living_agents()}


async def test_an_agent_of_the_test_module(embedded_conductor, agent_nodes):
    assert await agent_nodes.start(here, agent_id="mine") == ["mine"]
    assert (await here.run(embedded_conductor, timeout=30))["pid"] != os.getpid()


class TestCrash:
    @pytest.fixture
    def conductor_config(self, conductor_config):
        work = {"visibility_timeout": 3, "touch_interval": 1, "restore_interval": 1}
        return conductor_config.model_copy(update={"work": type(conductor_config.work)(**work)})

    async def test_a_killed_node(self, embedded_conductor, agent_nodes, tmp_path):
        first, second = await agent_nodes.start(wait_for_file, count=2)
        files = {"began": str(tmp_path / "began"), "go": str(tmp_path / "go")}
        running = asyncio.create_task(wait_for_file.run(embedded_conductor, files, timeout=60))
        while not (tmp_path / "began").exists():
            await asyncio.sleep(0.02)
        [busy] = [a.agent_id for a in await embedded_conductor.living_agents() if a.current_task_id]
        agent_nodes.kill(busy)
        (tmp_path / "go").touch()
        assert await running == files
        assert (tmp_path / "began").read_text() == "begun\\nbegun\\n"


async def test_what_no_node_can_import(embedded_conductor, agent_nodes):
    @agent("coding")
    async def inner(data: dict) -> dict:
        return data

    with pytest.raises(ConfigurationError, match="at the top of a module"):
        await agent_nodes.start(inner)
    with pytest.raises(ConfigurationError, match="one id"):
        await agent_nodes.start(here, count=2, agent_id="mine")
    with pytest.raises(ConductorError, match="There is no agent") as caught:
        await agent_nodes.start("nowhere")
    assert caught.value.error_code == "NODE_FAILED"


async def test_nobody_else_sees_it(embedded_conductor):
    assert await embedded_conductor.state.list_agent_states() == []
    assert "example" not in embedded_conductor.addresses.broker_url


async def test_by_hand(embedded_conductor):
    async with AgentNodes(embedded_conductor) as nodes:
        await nodes.start("loud:shout")
        assert (await shout.run(embedded_conductor, Text(text="b"), timeout=30))["text"] == "B"
    assert await embedded_conductor.state.list_agent_states() == []
"""

FAILING = """
from loud import shout


async def test_that_fails(agent_nodes):
    await agent_nodes.start(shout)
    assert False
"""

STRANGER = """
import sys


def test_it_costs_nothing_who_does_not_use_it():
    assert "conductor.testing" in sys.modules
    assert not {"celery", "kombu", "redis", "pydantic"} & sys.modules.keys()
"""


def run_pytest(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:celery", *arguments],
        env=environment(directory / "elsewhere") | variables,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_project_uses_all_fixtures_and_leaves_nothing(tmp_path: Path) -> None:
    settings = '[tool.pytest.ini_options]\nasyncio_mode = "auto"\npythonpath = ["src"]\n'
    files = {"pyproject.toml": settings, "src/loud.py": AGENTS, "tests/test_all.py": ALL}
    write_files(tmp_path, files)
    servers = {
        "CONDUCTOR_BROKER_URL": "redis://nobody.example/0",
        "CONDUCTOR_REDIS__URL": "redis://nobody.example/0",
    }
    done = run_pytest(tmp_path, "-v", "--basetemp", str(tmp_path / "temp"), **servers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
    assert processes_of(tmp_path) == []


def test_a_test_that_fails_shows_what_its_nodes_logged(tmp_path: Path) -> None:
    write_files(tmp_path, {"loud.py": AGENTS, "test_failing.py": FAILING})
    done = run_pytest(tmp_path, "-o", "asyncio_mode=auto")
    assert done.returncode == 1, done.stdout
    assert "log of node shout-1" in done.stdout
    assert "Node shout-1@" in done.stdout


def test_it_may_also_be_named(tmp_path: Path) -> None:
    named = 'pytest_plugins = ["conductor.testing"]\n'
    uses = "def test_it(conductor_config):\n    assert conductor_config.broker_url is None\n"
    write_files(tmp_path, {"conftest.py": named, "test_named.py": uses})
    done = run_pytest(tmp_path)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_who_does_not_use_it_does_not_pay(tmp_path: Path) -> None:
    write_files(tmp_path, {"test_stranger.py": STRANGER})
    done = run_pytest(tmp_path)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr


def test_without_an_asynchronous_plugin_pytest_says_so(tmp_path: Path) -> None:
    uses = "async def test_it(memory_conductor):\n    pass\n"
    write_files(tmp_path, {"test_plain.py": uses})
    done = run_pytest(tmp_path, "-p", "no:asyncio")
    assert done.returncode != 0
    assert "async" in done.stdout
