"""The Redis transports of nodes: the next task for the very agent is fetched while one runs."""

from __future__ import annotations

import base64
import json
import time
import uuid
from queue import Empty
from typing import Any

from kombu import Connection
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from conductor.broker import transport
from conductor.broker.results import script
from conductor.broker.topology import AGENT_QUEUE_PREFIX, WORK

#: How many tasks for the agent itself are taken one after the other before those for its type have a chance.
IN_A_ROW = 64

_MODULE = "conductor.broker.node_transport"
_TRANSPORTS = {
    "redis": f"{_MODULE}:Transport",
    "rediss": f"{_MODULE}:TLSTransport",
    "sentinel": f"{_MODULE}:SentinelTransport",
}

Connection.resolve_aliases.update({name: scheme for scheme, name in _TRANSPORTS.items()})


class QoS(transport.QoS):
    """Knows that what `take_ahead` delivered is noted as unacknowledged already."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message until it is acknowledged."""
        if delivery_tag == self.channel.taken_tag:
            VirtualQoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)


class _ChannelMixin:
    """Holds one task, and one more if it can go nowhere else.

    What is in the queue of an agent waits for this agent in any case. A task for a type must not wait here
    while another agent is free, so those are fetched only by a node that holds nothing, as kombu does it.
    """

    QoS = QoS
    taken_tag: str | None = None
    _in_a_row = 0
    _take: Any = None

    def _brpop_read(self, **options: Any) -> bool:
        """Read like kombu 5.7, but let what is no message of kombu's go on as one that cannot be decoded.

        It was taken from its list already, and the error would end the consumer.
        """
        try:
            try:
                found = self.client.parse_response(self.client.connection, "BRPOP", **options)  # type: ignore[attr-defined]
            except self.connection_errors:  # type: ignore[attr-defined]
                self.client.connection.disconnect()  # type: ignore[attr-defined]
                raise
            if not found:
                raise Empty
            queue = bytes_to_str(found[0]).rsplit(self.sep, 1)[0]  # type: ignore[attr-defined]
            self._queue_cycle.rotate(queue)  # type: ignore[attr-defined]
            self.connection._deliver(_envelope(found[1], queue), queue)  # type: ignore[attr-defined]  # noqa: SLF001
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()  # type: ignore[attr-defined]

    def take_ahead(self, waiting: int = 0) -> None:
        """Take the next task for the node's own agents, if there is one; never waits for one.

        `waiting` of the tasks that are held are to be tried again later.
        """
        held = self.qos  # type: ignore[attr-defined]
        if len(held._delivered) - len(held._dirty) - waiting != 1 or self._in_a_row >= IN_A_ROW:  # noqa: SLF001
            self._in_a_row = 0
            return
        queues = [name for name in self.active_queues if name.startswith(AGENT_QUEUE_PREFIX)]  # type: ignore[attr-defined]
        steps = self.priority_steps  # type: ignore[attr-defined]
        lists = [(queue, self._q_for_pri(queue, step)) for step in steps for queue in queues]  # type: ignore[attr-defined]
        if not lists:
            return
        keys = [*(key for _, key in lists), self.unacked_key, self.unacked_index_key]  # type: ignore[attr-defined]
        with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
            if self._take is None:
                self._take = client.register_script(script("take_task"))
            found = self._take(keys, [time.time()], client)
        if found is None:
            return
        self._in_a_row += 1
        message = json.loads(found[1])
        self.taken_tag = message["properties"]["delivery_tag"]
        self.connection._deliver(message, lists[found[0] - 1][0])  # type: ignore[attr-defined]  # noqa: SLF001


def _envelope(item: bytes, queue: str) -> dict[str, Any]:
    try:
        message = loads(item)
        info = message["properties"]["delivery_info"]
        if {"exchange", "routing_key"} <= info.keys() and message["properties"]["delivery_tag"]:
            return message  # type: ignore[no-any-return]
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return {
        "body": base64.b64encode(item).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": uuid.uuid4().hex,
            "delivery_info": {"exchange": WORK, "routing_key": queue},
        },
    }


class Channel(_ChannelMixin, transport.Channel):
    """A channel of `Transport`."""


class SentinelChannel(_ChannelMixin, transport.SentinelChannel):
    """A channel of `SentinelTransport`."""


class Transport(transport.Transport):
    """redis://"""

    Channel = Channel


class TLSTransport(transport.TLSTransport):
    """rediss://"""

    Channel = Channel


class SentinelTransport(transport.SentinelTransport):
    """sentinel://"""

    Channel = SentinelChannel


def node_transport_name(url: str) -> str | None:
    """What a node gives Celery as `broker_transport` for this URL; None for RabbitMQ."""
    return _TRANSPORTS.get(transport.scheme_of(url))
