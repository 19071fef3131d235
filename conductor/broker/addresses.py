"""Which servers a configuration means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conductor.broker.transport import tls_settings
from conductor.core.config import mask_url
from conductor.core.exceptions import ConfigurationError
from conductor.core.tls import read_tls
from conductor.store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor.core.config import ConductorConfig


EMBEDDED_GONE = (
    "the embedded server has ended with the 'conductor up', or the program, that started it: end this one, "
    "start 'conductor up', and then this one again, or set CONDUCTOR_BROKER_URL to a server that stays"
)


@dataclass(frozen=True)
class Addresses:
    """The URLs of the broker and of the Redis that keeps state and results."""

    broker_url: str
    redis_url: str

    def __repr__(self) -> str:
        return f"Addresses(broker_url={mask_url(self.broker_url)!r}, redis_url={mask_url(self.redis_url)!r})"


def find_addresses(config: ConductorConfig) -> Addresses:
    """Give the configured servers, with the running embedded server for what is not configured.

    Looks for the embedded server only where it is needed, which takes a connection to it. Raises
    ConfigurationError, code NO_BROKER or NO_REDIS, when nothing is configured and it is not running, and
    CONFIG_ERROR for a broker that is not known and for parameters of TLS that cannot be used.
    """
    _check(config, config.broker_url, tls_settings, "broker_url")
    _check(config, config.redis.url, read_tls, "redis", "url")
    broker_url, redis_url = config.effective_broker_url, config.effective_redis_url
    if broker_url and redis_url:
        return Addresses(broker_url, redis_url)
    embedded = EmbeddedServer.running(config.data_dir)
    if embedded is None and broker_url is None:
        raise ConfigurationError(
            "No broker is configured and no embedded server is running: start one with 'conductor up', or "
            "set CONDUCTOR_BROKER_URL, for example to redis://localhost:6379/0.",
            "NO_BROKER",
        )
    if embedded is None:
        raise ConfigurationError(
            "A broker is configured, but no Redis for state and results, and no embedded server is running: "
            "set CONDUCTOR_REDIS__URL, for example to redis://localhost:6379/0, or start 'conductor up'.",
            "NO_REDIS",
        )
    return Addresses(broker_url or embedded, redis_url or embedded)


def _check(config: ConductorConfig, url: str | None, check: Callable[[str], object], *key: str) -> None:
    try:
        if url:
            check(url)
    except ConfigurationError as error:
        name = ".".join(key)
        message = f"{name} in {config.source_of(*key)} is not valid: {error.message}."
        raise ConfigurationError(message, details={"keys": [name]}) from None


def uses_embedded(config: ConductorConfig) -> bool:
    """Whether one of the servers that a configuration means is the embedded one."""
    return config.effective_broker_url is None or config.effective_redis_url is None
