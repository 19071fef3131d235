"""A pytest plugin: fixtures for tests of agents, from none of the servers to all processes.

pytest finds it where Conductor is installed. The fixtures that are connected need pytest-asyncio, which
`pip install pytest-asyncio` brings. Without pytest this module has the classes, which work anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from pytest_asyncio import fixture as async_fixture

    from conductor.client import Conductor
    from conductor.core.config import ConductorConfig
    from conductor.testing.memory import InMemoryConductor
    from conductor.testing.nodes import AgentNodes
else:
    try:
        from pytest_asyncio import fixture as async_fixture
    except ImportError:
        # pytest itself, or the plugin anyio, says what is missing where one of them is used.
        async_fixture = pytest.fixture

__all__ = [
    "AgentNodes",
    "InMemoryConductor",
    "agent_nodes",
    "conductor_config",
    "embedded_conductor",
    "memory_conductor",
]


@pytest.fixture
def conductor_config(tmp_path_factory: pytest.TempPathFactory) -> ConductorConfig:
    """The configuration of the other fixtures; override it to change what they do.

    What `conductor.yaml` and the environment say counts, except where they name servers: a test gets an
    embedded one, with its data in a directory of its own.
    """
    from conductor.core.config import ConductorConfig

    data_dir = tmp_path_factory.mktemp("conductor")
    return ConductorConfig(broker_url=None, redis={"url": None}, data_dir=data_dir)


@async_fixture
async def memory_conductor(conductor_config: ConductorConfig) -> AsyncIterator[InMemoryConductor]:
    """An InMemoryConductor: no server, agents in this process."""
    from conductor.testing.memory import InMemoryConductor

    async with InMemoryConductor(conductor_config) as conductor:
        yield conductor


@async_fixture
async def embedded_conductor(conductor_config: ConductorConfig) -> AsyncIterator[Conductor]:
    """A Conductor on a real server of this test's own, empty and gone afterwards; no agents run yet."""
    from conductor.client import Conductor

    async with Conductor(conductor_config) as conductor:
        yield conductor


@async_fixture
async def agent_nodes(embedded_conductor: Conductor) -> AsyncIterator[AgentNodes]:
    """AgentNodes for `embedded_conductor`: starts agents as processes, and ends them with the test."""
    from conductor.testing.nodes import AgentNodes

    async with AgentNodes(embedded_conductor) as nodes:
        yield nodes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, with a test that failed, what its nodes logged."""
    report = yield
    nodes: Any = getattr(item, "funcargs", {}).get("agent_nodes")
    if report.failed and hasattr(nodes, "agent_ids"):
        for agent_id in nodes.agent_ids:
            report.sections.append((f"log of node {agent_id}", nodes.log(agent_id)[-10_000:]))
    return report


def __getattr__(name: str) -> Any:
    # pytest imports this module in every run; what is behind it only where it is used.
    if name == "InMemoryConductor":
        from conductor.testing.memory import InMemoryConductor

        return InMemoryConductor
    if name == "AgentNodes":
        from conductor.testing.nodes import AgentNodes

        return AgentNodes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
