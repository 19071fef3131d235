"""The Redis transports of nodes: a task is taken and noted in one step, and the next fetched while one runs.

Instead of kombu's BRPOP, the script that takes a message runs whenever there may be one. It never waits.
Where it finds nothing, the server remembers which lists its connection has looked at (CLIENT TRACKING), and
tells it once when one of them changes.
"""

from __future__ import annotations

import time
from typing import Any

from kombu import Connection
from kombu.transport.redis import MultiChannelPoller

from conductor.broker import redis_transport, transport
from conductor.broker.node_taking import Taker
from conductor.broker.topology import AGENT_QUEUE_PREFIX

#: How many tasks for the agents themselves are taken one after the other, and for how many seconds, before
#: those for their types have a chance.
IN_A_ROW, SECONDS_IN_A_ROW = 64, 1.0

_MODULE = "conductor.broker.node_transport"
_TRANSPORTS = {
    "redis": f"{_MODULE}:Transport",
    "rediss": f"{_MODULE}:TLSTransport",
    "sentinel": f"{_MODULE}:SentinelTransport",
}

Connection.resolve_aliases.update({name: scheme for scheme, name in _TRANSPORTS.items()})


class _ChannelMixin:
    """Holds one task, and one more if it can go nowhere else.

    What is in the queue of an agent waits for this agent in any case. A task for a type must not wait here
    while another agent is free, so those are fetched only by a node that holds nothing.
    """

    puts_back = True
    _taker: Taker | None = None
    #: Whether a look into the queues may find something.
    _hopeful = False
    _in_a_row = 0
    _row_began = 0.0

    def basic_consume(self, *arguments: Any, **options: Any) -> Any:
        self._hopeful = True
        return super().basic_consume(*arguments, **options)  # type: ignore[misc]

    def look_again(self) -> None:
        """Have the next turn of the event loop look into the queues."""
        self._hopeful = True

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Make use of a new connection."""
        self._in_poll = self.client.connection  # type: ignore[attr-defined]
        self._taker = Taker(self._in_poll)
        self._hopeful = True

    def _brpop_read(self, **_options: Any) -> None:
        """Note that there may be new tasks."""
        if self._taker is not None and not self._closing:  # type: ignore[attr-defined]
            self._taker.drain()
            self._hopeful = True

    def take_next(self) -> None:
        """Take the next task, if there may be one and the consumer may have it; never waits for one."""
        if not self._hopeful or self._taker is None or not self.qos.can_consume():  # type: ignore[attr-defined]
            return
        self._in_a_row, self._row_began = 0, time.monotonic()
        # What came before an empty answer is no news, what came after it is.
        self._hopeful = self._take_from(self._in_turn()) or self._taker.drain()
        if self._hopeful:
            # For another turn of the event loop at once: there may be more, and Celery's pool, which gives
            # the task to a process, may have had its part of this turn before; kombu has no order there.
            self._taker.ping()

    def take_ahead(self, waiting: int = 0) -> None:
        """Take the next task for the node's own agents, if there is one; never waits for one.

        `waiting` of the tasks that are held are to be tried again later.
        """
        held = self.qos  # type: ignore[attr-defined]
        if len(held._delivered) - len(held._dirty) - waiting != 1:  # noqa: SLF001
            return
        if self._in_a_row >= IN_A_ROW or time.monotonic() - self._row_began > SECONDS_IN_A_ROW:
            return
        own = [name for name in self._in_turn() if name.startswith(AGENT_QUEUE_PREFIX)]
        self._hopeful = True  # The answer may hide what the server told.
        if own and self._take_from(own):
            self._in_a_row += 1

    def _in_turn(self) -> list[str]:
        queues: list[str] = self._queue_cycle.consume(len(self.active_queues))  # type: ignore[attr-defined]
        return queues

    def _take_from(self, queues: list[str]) -> bool:
        """Deliver the first message of the queues, if there is one."""
        found = self._take(queues)  # type: ignore[attr-defined]
        if found is None:
            return False
        queue, message = found
        self._queue_cycle.rotate(queue)  # type: ignore[attr-defined]
        self.connection._deliver(message, queue)  # type: ignore[attr-defined]  # noqa: SLF001
        return True

    def _run_take(self, keys: list[str], arguments: list[str | float]) -> Any:
        if self._taker is None:
            return super()._run_take(keys, arguments)  # type: ignore[misc]
        return self._taker.take(len(keys), *keys, *arguments)


class Channel(_ChannelMixin, redis_transport.Channel):
    """A channel of `Transport`."""


class SentinelChannel(_ChannelMixin, redis_transport.SentinelChannel):
    """A channel of `SentinelTransport`."""


class _Poller(MultiChannelPoller):  # type: ignore[misc]
    """Looks into the queues where kombu would send BRPOP."""

    def _register_BRPOP(self, channel: Any) -> None:  # noqa: N802 - kombu's
        super()._register_BRPOP(channel)
        channel.take_next()

    def _update_brpop_polling(self) -> None:
        """Do nothing: what arrives is no task that would have to wait for its turn."""

    def on_readable(self, fileno: int) -> None:
        """Read also while the consumer may have no more."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind == "BRPOP":
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def maybe_restore_messages(self) -> None:
        """Also look into the queues, whatever the server told."""
        super().maybe_restore_messages()
        for channel in self._channels:
            channel.look_again()


class _TransportMixin:
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cycle = _Poller()


class Transport(_TransportMixin, redis_transport.Transport):
    """redis://"""

    Channel = Channel


class TLSTransport(_TransportMixin, redis_transport.TLSTransport):
    """rediss://"""

    Channel = Channel


class SentinelTransport(_TransportMixin, redis_transport.SentinelTransport):
    """sentinel://"""

    Channel = SentinelChannel


def node_transport_name(url: str) -> str:
    """What a node gives Celery as `broker_transport` for this URL."""
    return _TRANSPORTS.get(transport.scheme_of(url)) or transport.transport_name(url)
