"""Agent nodes under test, in pytest-celery's terms: workers, clusters and setups."""

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
)

from conductor.broker.addresses import Addresses
from conductor.broker.app import ConductorApp, create_app
from conductor.core.config import ConductorConfig
from tests.support.containers import LocalContainer, ServerContainer

#: What a node prints when it hears requests and its agents are started.
READY = "is ready:"
#: Set to an image, one with Conductor and these tests on the path, to run the nodes of the tests as
#: containers of it, on the host's network.
IMAGE = "CONDUCTOR_TEST_NODE_IMAGE"


class AgentNode(CeleryTestWorker):
    """A node that hosts one agent, whose id is its name."""

    def __init__(self, container: Any, app: ConductorApp, agent_id: str) -> None:
        super().__init__(container, app)
        self.agent_id = agent_id

    @property
    def worker_name(self) -> str:
        """The part of the Celery node name before the machine."""
        return self.agent_id

    @property
    def worker_queue(self) -> str:
        """The queue of the agent's own tasks."""
        return f"conductor.agent.{self.agent_id}"

    def hostname(self) -> str:
        """The Celery node name."""
        return f"{self.agent_id}@test"


@dataclass
class Farm:
    """Starts nodes on one pair of servers, and ends all of them."""

    addresses: Addresses
    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    nodes: list[AgentNode] = field(default_factory=list)

    @property
    def config(self) -> ConductorConfig:
        """The configuration of clients."""
        return ConductorConfig(
            broker_url=self.addresses.broker_url,
            redis={"url": self.addresses.redis_url},
            work={"hard_limit_grace": float(self.settings.get("CONDUCTOR_WORK__HARD_LIMIT_GRACE", "5"))},
            errors={"unknown_agent_seconds": 1},
        )

    @property
    def app(self) -> ConductorApp:
        """A Celery application like the nodes'."""
        return create_app(self.config, addresses=self.addresses, set_as_current=False)

    def start(
        self,
        agent: str,
        agent_id: str | None = None,
        module: str = "tests.support.agents",
        **settings: str,
    ) -> AgentNode:
        """Start a node; it is not ready yet."""
        agent_id = agent_id or f"{agent.lower()}-{uuid.uuid4().hex[:8]}"
        container = _container(
            agent_id,
            worker_command("--agent", f"{module}:{agent}", "-n", f"{agent_id}@test"),
            self.environment() | settings,
            self.directory,
        )
        node = AgentNode(container, self.app, agent_id)
        self.nodes.append(node)
        return node

    def environment(self) -> dict[str, str]:
        """What a node has to know."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")},
            "CONDUCTOR_BROKER_URL": self.addresses.broker_url,
            "CONDUCTOR_REDIS__URL": self.addresses.redis_url,
            **self.settings,
        }

    def setup(self, *nodes: AgentNode) -> CeleryTestSetup:
        """Put nodes and servers together; ready when all of them are."""
        broker = CeleryTestBroker(ServerContainer("broker", self.addresses.broker_url))
        backend = CeleryTestBackend(ServerContainer("backend", self.addresses.redis_url))
        setup = CeleryTestSetup(
            CeleryWorkerCluster(*nodes), CeleryBrokerCluster(broker), CeleryBackendCluster(backend), self.app
        )
        assert setup.ready()
        return setup

    def logs(self) -> str:
        """All that the nodes printed, for the message of a failure."""
        return "\n".join(f"--- {node.name()} ({node.container.status})\n{node.logs()}" for node in self.nodes)

    def teardown(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.teardown()
        self.nodes.clear()


def worker_command(*options: str) -> list[str]:
    """The command line of a node."""
    return [sys.executable, "-m", "celery", "-A", "workers", "worker", "--loglevel", "INFO", *options]


def run_celery(
    *arguments: str, environment: dict[str, str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `celery -A workers ...` to its end."""
    command = [sys.executable, "-m", "celery", "-A", "workers", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )


def _container(name: str, command: list[str], environment: dict[str, str], directory: Path) -> Any:
    image = os.environ.get(IMAGE)
    if image:
        from tests.support.docker import run_container

        return run_container(image, name, command[1:], environment, READY)
    return LocalContainer(name, command, environment, directory, READY)
