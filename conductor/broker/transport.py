"""The one way to open a connection to a broker.

For Celery: `broker_transport = transport_name(url)` beside `broker_url = url`, and `transport_options(url)`
merged into `broker_transport_options`. What the transports do otherwise than kombu's is in
`redis_transport` and `amqp_transport`.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from kombu import Connection

from conductor.broker.amqp_transport import TRANSPORTS as AMQP_TRANSPORTS
from conductor.broker.queue_types import has_quorum_queues, without_queue_type
from conductor.broker.quorum_transport import TRANSPORTS as QUORUM_TRANSPORTS
from conductor.broker.redis_transport import TRANSPORTS as REDIS_TRANSPORTS
from conductor.core.config import mask_url
from conductor.core.exceptions import ConfigurationError
from conductor.core.secrets import remember_secrets
from conductor.core.tls import read_tls, without_tls

logger = logging.getLogger(__name__)

_TRANSPORTS = REDIS_TRANSPORTS | AMQP_TRANSPORTS
#: Seconds that one answer of a Sentinel with TLS may take.
_SENTINEL_LIMIT = 5.0


def scheme_of(url: str) -> str:
    """The scheme of a broker's URL; an unknown one is a ConfigurationError that lists the known ones."""
    scheme = urlsplit(url).scheme
    if scheme not in _TRANSPORTS:
        known = ", ".join(f"{name}://" for name in _TRANSPORTS)
        raise ConfigurationError(f"No broker is known for {mask_url(url)!r}; the known ones are {known}")
    return scheme


def system_of(url: str) -> str:
    """Name the kind of the broker at `url`, as spans have it."""
    return "rabbitmq" if is_rabbitmq(url) else "redis"


def is_rabbitmq(url: str) -> bool:
    """Whether the broker at `url` is RabbitMQ; else it is a Redis or Valkey."""
    return scheme_of(url) in AMQP_TRANSPORTS


def transport_name(url: str) -> str:
    """What to give kombu as `transport`, and Celery as `broker_transport`; see `has_quorum_queues`."""
    scheme = scheme_of(url)
    return (QUORUM_TRANSPORTS if has_quorum_queues(url) else _TRANSPORTS)[scheme]


def transport_options(url: str) -> dict[str, Any]:
    """The transport options that the URL itself asks for."""
    if scheme_of(url) != "sentinel":
        return {}
    query = dict(parse_qsl(urlsplit(url).query))
    options: dict[str, Any] = {"master_name": query.get("master_name", "mymaster")}
    if tls := read_tls(url):
        # With arguments of their own Sentinels do not get the timeouts of the master's connections.
        limits = {"socket_timeout": _SENTINEL_LIMIT, "socket_connect_timeout": _SENTINEL_LIMIT}
        options["sentinel_kwargs"] = {"ssl": True, **limits, **tls}
    return options


def tls_settings(url: str) -> dict[str, Any] | bool:
    """What to give kombu as `ssl`, and Celery as `broker_use_ssl`; ConfigurationError as `read_tls`."""
    scheme_of(url)
    return read_tls(url) or False


def broker_url(url: str) -> str:
    """The URL as kombu takes it: without what says how to connect and which transport to use."""
    if scheme_of(url) == "sentinel":
        return urlunsplit(urlsplit(url)._replace(query=""))
    return without_queue_type(without_tls(url))


def kombu_connection(
    url: str,
    *,
    connect_timeout: float = 5.0,
    io_timeout: float = 5.0,
    heartbeat: float = 0,
    confirm_publish: bool = False,
) -> Connection:
    """Describe a connection to the broker at `url`; nothing is connected yet.

    Times are in seconds. No operation on the connection waits longer than `io_timeout` for the broker, once
    `limit_reading` was called. `heartbeat` is for RabbitMQ only; who asks for it has to call
    `heartbeat_check` in time. `confirm_publish` makes RabbitMQ say that it has what was published.
    """
    remember_secrets(url)
    options = transport_options(url)
    if is_rabbitmq(url):
        options |= {
            "read_timeout": io_timeout,
            "write_timeout": io_timeout,
            "confirm_publish": confirm_publish,
        }
    else:
        options |= {
            "socket_timeout": io_timeout,
            "socket_connect_timeout": connect_timeout,
            "socket_keepalive": True,
        }
    return Connection(
        broker_url(url),
        transport=transport_name(url),
        ssl=tls_settings(url),
        connect_timeout=connect_timeout,
        heartbeat=heartbeat,
        transport_options=options,
    )


def limit_reading(connection: Connection) -> None:
    """Hold a connection that was made to its `io_timeout` also in the middle of a frame of RabbitMQ's.

    kombu's `read_timeout` is SO_RCVTIMEO, which py-amqp 5.4 takes for a reason to read on.
    """
    if limit := connection.transport_options.get("read_timeout"):
        connection.connection.sock.settimeout(limit)


def connect(connection: Connection, patience: float) -> None:
    """Connect, trying for `patience` seconds; then no reading takes longer than the `io_timeout`."""
    pauses = {"interval_start": 0.1, "interval_step": 0.2, "interval_max": 1}
    connection.ensure_connection(max_retries=None, timeout=patience, **pauses)
    limit_reading(connection)


def disconnect(connection: Connection) -> None:
    """Close a connection that may be broken."""
    try:
        connection.release()
    except Exception:
        logger.debug("a connection did not close cleanly", exc_info=True)
        connection.collect()
