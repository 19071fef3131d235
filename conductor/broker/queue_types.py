"""Which type the queues of tasks have on RabbitMQ: what a URL says of it."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from conductor.core.exceptions import ConfigurationError
from conductor.core.urls import shown, without_parameters

#: The parameter of a URL.
TASK_QUEUES = "task_queues"
CLASSIC, QUORUM = "classic", "quorum"


def has_quorum_queues(url: str) -> bool:
    """Whether a broker's URL asks for replicated queues of tasks; a bad parameter is a ConfigurationError."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    given = [value for name, value in pairs if name == TASK_QUEUES]
    if not given:
        return False
    if parts.scheme not in ("amqp", "amqps"):
        raise ConfigurationError(
            f"{TASK_QUEUES} is of no use in {parts.scheme}://, which has no types of queues: leave it out"
        )
    value = given[-1]
    if value not in (CLASSIC, QUORUM):
        raise ConfigurationError(
            f"{TASK_QUEUES}={shown(value)} is none of {CLASSIC}, {QUORUM}: write {TASK_QUEUES}={QUORUM} for "
            "queues that RabbitMQ replicates, or leave it out"
        )
    return value == QUORUM


def without_queue_type(url: str) -> str:
    """Give the URL without what `has_quorum_queues` reads."""
    return without_parameters(url, lambda name: name == TASK_QUEUES)
