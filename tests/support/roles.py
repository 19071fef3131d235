"""The roles that docs/security.md gives rights to, each with a user of its own, and nodes for them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conductor.broker.addresses import Addresses
from conductor.cli.commands import app
from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType
from conductor.core.models import TaskDefinition, TaskResult
from tests.support.cli import LIMIT, background
from tests.support.nodes import AgentNode, Farm
from tests.support.observed import Observed
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync

NODE, CLIENT, WATCHER, INSPECTOR, OPERATOR = ROLES = (
    "conductor-node",
    "conductor-client",
    "conductor-watcher",
    "conductor-inspector",
    "conductor-operator",
)

#: Quick, so that every timer of a node runs within the test.
NODE_SETTINGS = {
    "CONDUCTOR_WORK__VISIBILITY_TIMEOUT": "3",
    "CONDUCTOR_WORK__TOUCH_INTERVAL": "0.5",
    "CONDUCTOR_WORK__RESTORE_INTERVAL": "0.5",
    "CONDUCTOR_NODE__HEARTBEAT_INTERVAL": "0.5",
    "CONDUCTOR_ERRORS__RETRY__INITIAL_DELAY": "0.2",
    "CONDUCTOR_ERRORS__BREAKER__FAILURE_THRESHOLD": "2",
    "CONDUCTOR_ERRORS__BREAKER__RECOVERY_TIMEOUT": "1",
    "CONDUCTOR_ERRORS__BREAKER__SUCCESS_THRESHOLD": "1",
    "CONDUCTOR_ERRORS__MAX_WORKER_LOSSES": "2",
    "CONDUCTOR_ERRORS__UNKNOWN_AGENT_SECONDS": "1",
    "CONDUCTOR_REDIS__AGENT_EXPIRES_SECONDS": "3600",
}
SIGNING = {"keys": {"k": "k" * 32}, "key_id": "k"}


@dataclass
class Place:
    """A directory with the configuration of each role."""

    directory: Path
    servers: dict[str, Addresses]
    """By role, with its user."""
    rules: dict[str, list[str]]
    """What the user of a role may on the Redis."""
    observed: Observed
    """The Redis."""

    def config(self, role: str, *, expires: float | None = None, **more: Any) -> ConductorConfig:
        """The configuration of a role."""
        mine = self.servers[role]
        return ConductorConfig(
            broker_url=mine.broker_url,
            redis={"url": mine.redis_url, "workflow_expires_seconds": expires},
            bus={"publish_timeout": 3},
            **more,
        )

    def run(self, role: str, *arguments: str, code: int | None = 0) -> str:
        """Run a command of the terminal as a role; give what it wrote to standard output."""
        directory = self._home(role)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            env = {"CONDUCTOR_DATA_DIR": str(directory / "data"), "COLUMNS": "120", "NO_COLOR": "1"}
            done = CliRunner().invoke(app, arguments, env=env)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert code is None or done.exit_code == code, f"{role}: {arguments}\n{done.output}"
        return done.stdout

    def json(self, role: str, *arguments: str, code: int | None = 0) -> Any:
        """The same for what it wrote as JSON."""
        return json.loads(self.run(role, *arguments, "--json", code=code))

    def background(self, role: str, *arguments: str) -> Any:
        """Run a command beside the test."""
        directory = self._home(role)
        return background(directory / "data", *arguments, cwd=directory)

    def _home(self, role: str) -> Path:
        directory, mine = self.directory / role, self.servers[role]
        settings = f"broker_url: {mine.broker_url}\nredis: {{url: {mine.redis_url}}}\n"
        if role in (INSPECTOR, OPERATOR):
            settings += f"signing: {json.dumps(SIGNING)}\n"
        write_files(directory, {"conductor.yaml": settings})
        return directory


def order(do: str, kind: AgentType = AgentType.DEVOPS, **orders: object) -> TaskDefinition:
    """A task for an obedient agent."""
    return TaskDefinition(
        name=f"to {do}", assigned_to=kind, input_data={"do": do, **orders}, timeout_seconds=60
    )


@dataclass
class Left:
    """What the work of nodes and clients left for others to look at."""

    agent_id: str
    task_id: str
    workflow_id: str
    dead: list[str]


@dataclass
class Nodes:
    """An obedient node, one whose agent tells of its progress, and more."""

    farm: Farm
    obedient: AgentNode
    measuring: AgentNode

    def more(self) -> AgentNode:
        """Start another obedient node; it is ready."""
        node = self.farm.start("DevOpsProbe")
        self.farm.setup(node)
        return node


@contextmanager
def nodes_of(place: Place) -> Iterator[Nodes]:
    """Nodes that are ready, and end in good order."""
    settings = NODE_SETTINGS | {"CONDUCTOR_SIGNING": json.dumps(SIGNING)}
    farm = Farm(place.servers[NODE], place.directory, settings)
    try:
        nodes = Nodes(
            farm, farm.start("DevOpsProbe"), farm.start("measure", module="tests.support.function_agents")
        )
        farm.setup(nodes.obedient, nodes.measuring)
        yield nodes
        for node in (nodes.obedient, nodes.measuring):
            node.kill("SIGTERM", reload_container=False)
        for node in (nodes.obedient, nodes.measuring):
            wait_until_sync(partial(_has_ended, node), timeout=LIMIT)
    except BaseException as error:
        error.add_note(farm.logs()[-20000:])
        raise
    finally:
        farm.teardown()


def _has_ended(node: AgentNode) -> bool:
    return bool(node.container.status == "exited")


async def result_of(conductor: Conductor, task: TaskDefinition, agent_id: str | None = None) -> TaskResult:
    """Have a task done, as soon as policies allow it."""
    return await (await conductor.dispatch(task, agent_id, wait=60)).result(60)
