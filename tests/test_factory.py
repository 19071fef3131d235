"""A URL is enough to get a bus or a state manager."""

from collections.abc import Callable
from uuid import uuid4

import pytest
import redis

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.config import RedisConfig
from conductor.core.enums import TaskStatus
from conductor.core.exceptions import ConfigurationError
from conductor.core.models import TaskResult
from conductor.core.state import WorkflowState
from conductor.factory import create_message_bus, create_state_manager
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from conductor.store.redis_state import RedisStateManager


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:1234/0",
        "rediss://host/1",
        "sentinel://host:26379;sentinel://other:26379/0?master_name=main",
        "amqp://user:secret@host/vhost",
        "amqps://host//",
    ],
)
def test_a_broker_gives_the_bus_across_processes(url: str) -> None:
    bus = create_message_bus(url)
    assert isinstance(bus, KombuMessageBus)
    assert "secret" not in repr(bus)


def test_memory_gives_the_implementations_of_one_process() -> None:
    assert isinstance(create_message_bus("memory://"), InMemoryMessageBus)
    assert isinstance(create_state_manager("memory://"), InMemoryStateManager)


@pytest.mark.parametrize("url", ["redis://host/0", "rediss://host/0", "unix:///run/redis.sock"])
def test_redis_gives_the_shared_state(url: str) -> None:
    assert isinstance(create_state_manager(url), RedisStateManager)


async def test_prefix_and_expiry_of_the_configuration_are_used(valkey_url: str) -> None:
    prefix = f"{uuid4()}:"
    config = RedisConfig(key_prefix=prefix, task_result_expires_seconds=60)
    async with create_state_manager(valkey_url, config=config) as state:
        await state.save_task_result(TaskResult(task_id="t", agent_id="a", status=TaskStatus.COMPLETED))
        await state.save_workflow_state(WorkflowState(workflow_id="w"))
    with redis.Redis.from_url(valkey_url) as client:
        assert 0 < client.ttl(f"{prefix}task_result:t") <= 60
        assert client.ttl(f"{prefix}workflow:w") == -1


@pytest.mark.parametrize("url", ["kafka://me:secret@host", "host:6379", "", "://x"])
def test_an_unknown_scheme_lists_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigurationError) as bus:
        create_message_bus(url)
    assert "amqps://" in str(bus.value)
    assert "memory://" in str(bus.value)
    assert "secret" not in str(bus.value)
    with pytest.raises(ConfigurationError, match="unix://"):
        create_state_manager(url)


@pytest.mark.parametrize("make", [create_message_bus, create_state_manager])
def test_a_password_in_pieces_is_refused_and_not_shown(make: Callable[[str], object]) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as raised:
        make("redis://someone:pa/leak@localhost/0")
    assert "leak" not in str(raised.value)
