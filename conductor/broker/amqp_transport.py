"""Our variant of kombu's RabbitMQ transport: work that was published is in its queue, or that is an error.

kombu remembers for each connection what it declared, and RabbitMQ confirms also what it can put nowhere: a
message for a queue that somebody deleted meanwhile would vanish without a word.
"""

from __future__ import annotations

from typing import Any

from kombu import Connection
from kombu.transport import pyamqp

from conductor.broker.topology import WORK, durable_queue

_MODULE = "conductor.broker.amqp_transport"
TRANSPORTS = {"amqp": f"{_MODULE}:Transport", "amqps": f"{_MODULE}:TLSTransport"}

Connection.resolve_aliases.update({name: scheme for scheme, name in TRANSPORTS.items()})


class Channel(pyamqp.Channel):  # type: ignore[misc]
    """A channel of `Transport`."""

    def basic_publish_confirm(
        self, msg: Any, exchange: str = "", routing_key: str = "", mandatory: bool = False, **options: Any
    ) -> None:
        """Return when the broker has it; work that no queue takes is a ChannelError."""
        if exchange != WORK and (exchange or durable_queue(routing_key) is None):
            super().basic_publish_confirm(msg, exchange, routing_key, mandatory, **options)
            return
        returned = self._publish_work(msg, exchange, routing_key, options)
        if returned is not None and (queue := durable_queue(routing_key)) is not None:
            queue(self).declare()
            returned = self._publish_work(msg, exchange, routing_key, options)
        if returned is not None:
            raise returned

    def _publish_work(
        self, msg: Any, exchange: str, routing_key: str, options: dict[str, Any]
    ) -> Exception | None:
        """Publish; gives the error with which it came back, which RabbitMQ sends before the confirmation."""
        returned: list[Exception] = []

        def note(error: Exception, *_: Any) -> None:
            returned.append(error)

        self.events["basic_return"].add(note)
        try:
            super().basic_publish_confirm(msg, exchange, routing_key, mandatory=True, **options)
        finally:
            self.events["basic_return"].discard(note)
        return returned[0] if returned else None


class AmqpConnection(pyamqp.Connection):  # type: ignore[misc]
    """A connection with such channels."""

    Channel = Channel


class Transport(pyamqp.Transport):  # type: ignore[misc]
    """amqp://"""

    Connection = AmqpConnection


class TLSTransport(pyamqp.SSLTransport):  # type: ignore[misc]
    """amqps://"""

    Connection = AmqpConnection
