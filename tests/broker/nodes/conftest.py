"""Nodes that the tests of one broker share."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio as redis
from pytest_celery import CeleryTestSetup

from conductor.broker.addresses import Addresses
from conductor.client import Conductor
from conductor.core.channels import ERRORS
from conductor.core.dead_letters import DeadLetter
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import TaskDefinition
from tests.support import rabbitmq
from tests.support.agents import TEST_IS_OVER
from tests.support.buses import Inbox
from tests.support.nodes import AgentNode, Farm

#: Short, so that what a killed node held is back soon.
SETTINGS = {
    "CONDUCTOR_WORK__VISIBILITY_TIMEOUT": "3",
    "CONDUCTOR_WORK__TOUCH_INTERVAL": "0.5",
    "CONDUCTOR_WORK__RESTORE_INTERVAL": "0.5",
    "CONDUCTOR_WORK__HARD_LIMIT_GRACE": "1.5",
    "CONDUCTOR_NODE__HEARTBEAT_INTERVAL": "0.5",
    "CONDUCTOR_ERRORS__RETRY__INITIAL_DELAY": "0.2",
    "CONDUCTOR_ERRORS__RETRY__BACKOFF_MULTIPLIER": "1",
    # So that what one test lets fail does not stop the next.
    "CONDUCTOR_ERRORS__BREAKER__FAILURE_THRESHOLD": "1000",
    "CONDUCTOR_ERRORS__BREAKER__RECOVERY_TIMEOUT": "1",
}


#: What is also shown on quorum queues: all that keeps, delivers again, waits or gives back.
ON_QUORUM_QUEUES = (
    "test_connection_loss",
    "test_crashes",
    "test_dead_letter_replay",
    "test_errors",
    "test_limits",
    "test_plain_celery",
    "test_redelivery",
    "test_unfinished_failures",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs nodes on each kind of broker, unless it says itself on which."""
    said = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "farm" not in metafunc.fixturenames or "farm" in said or hasattr(metafunc.module, "farm"):
        return
    kinds = ["valkey", "rabbitmq"]
    if metafunc.module.__name__.rpartition(".")[2] in ON_QUORUM_QUEUES:
        kinds.append("quorum")
    metafunc.parametrize("farm", kinds, indirect=True, scope="package")


@pytest.fixture(scope="session")
def quorum_url() -> Iterator[str]:
    """A virtual host of this run's own, in whose URL queues of tasks are quorum queues."""
    rabbitmq.skip_without_ctl()
    with rabbitmq.virtual_host(task_queues="quorum") as url:
        yield url


@pytest.fixture(scope="package")
def farm(
    request: pytest.FixtureRequest, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    """Nodes on one kind of broker; results are in Valkey, in a database of their own."""
    server = valkey_url.rpartition("/")[0]
    if request.param == "valkey":
        addresses = Addresses(f"{server}/7", f"{server}/7")
    elif request.param == "rabbitmq":
        addresses = Addresses(request.getfixturevalue("rabbitmq_url"), f"{server}/8")
    else:
        addresses = Addresses(request.getfixturevalue("quorum_url"), f"{server}/10")
    farm = Farm(addresses, tmp_path_factory.mktemp(f"nodes-{request.param}"), SETTINGS)
    yield farm
    farm.teardown()


@pytest.fixture(scope="package")
def shared(farm: Farm) -> CeleryTestSetup:
    """Two agents of type CODING and one of type DEVOPS, which no test ends."""
    return farm.setup(farm.start("ObedientAgent"), farm.start("ObedientAgent"), farm.start("DevOpsProbe"))


@pytest.fixture
def agent(shared: CeleryTestSetup) -> AgentNode:
    """The first node of type CODING."""
    node = shared.worker_cluster[0]
    assert isinstance(node, AgentNode)
    return node


@pytest.fixture
def other(shared: CeleryTestSetup) -> AgentNode:
    """The second node of type CODING."""
    node = shared.worker_cluster[1]
    assert isinstance(node, AgentNode)
    return node


@pytest.fixture
def devops(shared: CeleryTestSetup) -> AgentNode:
    """The node of type DEVOPS."""
    node = shared.worker_cluster[2]
    assert isinstance(node, AgentNode)
    return node


@pytest.fixture
async def conductor(farm: Farm) -> AsyncIterator[Conductor]:
    """A client of the farm."""
    async with Conductor(farm.config) as conductor:
        yield conductor


@pytest.fixture
def starting(farm: Farm) -> Iterator[Callable[..., AgentNode]]:
    """Start nodes that end with the test."""
    started: list[AgentNode] = []

    def start(agent: str, agent_id: str | None = None, **settings: str) -> AgentNode:
        node = farm.start(agent, agent_id, **settings)
        started.append(node)
        return node

    yield start
    for node in started:
        node.teardown()


@pytest.fixture
async def store(farm: Farm) -> AsyncIterator[redis.Redis]:
    """The Redis with the records of tasks."""
    client = redis.Redis.from_url(farm.addresses.redis_url)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def _no_agent_waits_for_a_test_that_is_over(tmp_path: Path) -> Iterator[None]:
    yield
    (tmp_path / TEST_IS_OVER).touch()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the nodes printed when a test fails."""
    outcome = yield
    report = outcome.get_result()
    farm = getattr(item, "funcargs", {}).get("farm")
    if report.when == "call" and report.failed and isinstance(farm, Farm):
        report.sections.append(("logs of the nodes", farm.logs()[-20000:]))


def task(
    do: str = "echo", assigned_to: AgentType | None = AgentType.CODING, **orders: object
) -> TaskDefinition:
    """Make a task for an obedient agent."""
    timeout = orders.pop("timeout", 60)
    data = {"do": do, **{name: str(v) if isinstance(v, Path) else v for name, v in orders.items()}}
    return TaskDefinition(name=f"to {do}", assigned_to=assigned_to, input_data=data, timeout_seconds=timeout)


async def letters_of(conductor: Conductor, task_id: str) -> list[DeadLetter]:
    """Find the dead letters of a task."""
    return [one for one in await conductor.dead_letters.list(limit=None) if one.task_id == task_id]


async def the_letter(conductor: Conductor, task_id: str) -> DeadLetter:
    """The one letter of a task, which is there when its failure is told."""
    (letter,) = await letters_of(conductor, task_id)
    return letter


@pytest.fixture
async def escalated(conductor: Conductor) -> Inbox:
    inbox = Inbox()
    await conductor.bus.subscribe(ERRORS, inbox)
    return inbox


async def echo(conductor: Conductor, agent: AgentNode) -> None:
    """See that the agent works."""
    result = await (await conductor.dispatch(task(), agent.agent_id)).result(20)
    assert result.status is TaskStatus.COMPLETED
