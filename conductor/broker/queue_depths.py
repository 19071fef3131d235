"""How much waits in the queues, without taking anything out of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from conductor.broker import topology
from conductor.broker.task_sender import broker_unavailable
from conductor.broker.transport import disconnect, is_rabbitmq, kombu_connection, limit_reading
from conductor.core.enums import AgentType
from conductor.core.exceptions import MessageBusError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kombu import Connection

#: What kombu 5.7 keeps on Redis of the queues that are bound to an exchange, and what is between the words.
_BINDINGS, _SEPARATOR = f"_kombu.binding.{topology.WORK}", "\x06\x16"


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue: of an agent, of a type of agents, of a group, or of the dead letters."""

    name: str
    ready: int
    """Messages that wait to be taken."""
    consumers: int | None = None
    """Who takes them; None where the broker does not know, as Redis."""

    @property
    def agent_id(self) -> str | None:
        """The agent whose tasks are in it."""
        return topology.agent_of_queue(self.name)

    @property
    def agent_type(self) -> AgentType | None:
        """The type of agents whose tasks are in it."""
        return topology.type_of_queue(self.name)


def read_queue_depths(
    broker_url: str, agent_ids: Iterable[str] = (), timeout: float = 5.0
) -> list[QueueDepth]:
    """Look at all queues that exist, by their names; blocks, each wait for `timeout` seconds at most.

    Redis knows the queues itself. RabbitMQ tells only of those that are asked for: the types', the dead
    letters', and those of `agent_ids`. Raises MessageBusError, code BROKER_UNAVAILABLE.
    """
    connection = kombu_connection(broker_url, connect_timeout=timeout, io_timeout=timeout)
    try:
        connection.ensure_connection(max_retries=0)
        limit_reading(connection)
        if is_rabbitmq(broker_url):
            found = _on_rabbitmq(connection, agent_ids)
        else:
            found = _on_redis(connection, agent_ids)
    except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors) as error:
        raise broker_unavailable(error, broker_url, "look at its queues") from error
    finally:
        disconnect(connection)
    return sorted(found, key=lambda queue: queue.name)


def _on_redis(connection: Connection, agent_ids: Iterable[str]) -> list[QueueDepth]:
    client: Any = connection.default_channel.client
    bound = {raw.decode().rpartition(_SEPARATOR)[2] for raw in map(_bytes, client.smembers(_BINDINGS))}
    groups = {_bytes(raw).decode() for raw in client.hkeys(topology.GROUP_REGISTRY)}
    names = sorted(bound | groups | set(_always(agent_ids)))
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.llen(name)
        lengths = pipeline.execute()
    known = bound | groups | {topology.DEAD_LETTERS}
    return [
        QueueDepth(name, int(length))
        for name, length in zip(names, lengths, strict=True)
        if length or name in known
    ]


def _on_rabbitmq(connection: Connection, agent_ids: Iterable[str]) -> list[QueueDepth]:
    found = []
    for name in _always(agent_ids):
        # What is not there costs the channel.
        channel = connection.channel()
        with contextlib.suppress(*connection.channel_errors):
            declared = channel.queue_declare(queue=name, passive=True)
            found.append(QueueDepth(name, declared.message_count, declared.consumer_count))
            channel.close()
    return found


def _always(agent_ids: Iterable[str]) -> list[str]:
    names = [topology.DEAD_LETTERS, *(topology.type_queue(kind).name for kind in AgentType)]
    for agent_id in agent_ids:
        with contextlib.suppress(MessageBusError):
            names.append(topology.agent_queue(agent_id).name)
    return names


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
