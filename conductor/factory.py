"""The bus and the state manager that a URL asks for."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from conductor.core.config import RedisConfig, mask_url
from conductor.core.exceptions import ConfigurationError
from conductor.core.urls import check_url
from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
from conductor.orchestration.state_manager import InMemoryStateManager, StateManager

T = TypeVar("T")


def create_message_bus(url: str) -> MessageBus:
    """Make the bus for `url`, not yet connected; a bad one is a ConfigurationError.

    memory:// is a bus of its own, for one process and event loop; redis://, rediss://, sentinel://, amqp://
    and amqps:// are for all processes that use the same broker.
    """
    makers: dict[str, Callable[[str], MessageBus]] = {"memory": lambda _: InMemoryMessageBus()}
    makers |= dict.fromkeys(("redis", "rediss", "sentinel", "amqp", "amqps"), _kombu_bus)
    return _make("message bus", url, makers)


def create_state_manager(url: str, *, config: RedisConfig | None = None) -> StateManager:
    """Make the state manager for `url`, not yet connected; a bad one is a ConfigurationError.

    Of `config`, as in `load_config().redis`, the key prefix and the times of expiry are used, not the URL.
    """
    makers: dict[str, Callable[[str], StateManager]] = {"memory": lambda _: InMemoryStateManager()}
    makers |= dict.fromkeys(("redis", "rediss", "unix"), partial(_redis_state, config or RedisConfig()))
    return _make("state manager", url, makers)


def _kombu_bus(url: str) -> MessageBus:
    from conductor.broker.kombu_bus import KombuMessageBus

    return KombuMessageBus(url)


def _redis_state(config: RedisConfig, url: str) -> StateManager:
    from conductor.store.redis_state import RedisStateManager

    return RedisStateManager(url, config.key_prefix, expires_seconds=config.expires_seconds)


def _make(what: str, url: str, makers: Mapping[str, Callable[[str], T]]) -> T:
    if not isinstance(url, str):
        raise ConfigurationError(f"The URL of a {what} is text, not {url!r}")
    scheme, separator, _ = url.partition("://")
    maker = makers.get(scheme.lower() if separator else "")
    if maker is None:
        known = ", ".join(f"{name}://" for name in makers)
        raise ConfigurationError(
            f"There is no {what} for {mask_url(url)!r}; the known schemes are {known}",
            details={"scheme": scheme if separator else None, "known": list(makers)},
        )
    try:
        check_url(url)
    except ValueError as error:
        raise ConfigurationError(f"The URL {error}") from None
    return maker(url)
