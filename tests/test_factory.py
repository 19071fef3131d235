"""A URL is enough to get a bus or a state manager."""

import pytest

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.exceptions import ConfigurationError
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


@pytest.mark.parametrize("url", ["kafka://me:secret@host", "host:6379", "", "://x"])
def test_an_unknown_scheme_lists_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigurationError) as bus:
        create_message_bus(url)
    assert "amqps://" in str(bus.value)
    assert "memory://" in str(bus.value)
    assert "secret" not in str(bus.value)
    with pytest.raises(ConfigurationError, match="unix://"):
        create_state_manager(url)
