"""Our variants of kombu's Redis transports; that of RabbitMQ is in `amqp_transport`.

What differs from kombu 5.7:
- One redis client per channel and pool instead of one per command: redis-py 8 builds a table of 170 reply
  callbacks for every client object.
- Fanout exchanges store no bindings. PUB/SUB does not need them, and those of a killed subscriber would stay.
- Several queues may be bound to one fanout exchange in one channel; kombu keeps only the last.
- Names are SUBSCRIBEd, not PSUBSCRIBEd: a right to a channel of Redis covers names that match it, but no
  pattern other than itself.
- Only nodes put back what others abandoned: Flower and `conductor top` need no right to write into queues.
- Consumers touch the messages they hold every `touch_interval` seconds, so that a short visibility timeout
  does not make another consumer take over a message that is being worked on.
- A message is taken, and noted as not acknowledged yet, by one script. kombu does the one after the other,
  and a process that is killed in between loses the message. Who consumes needs `node_transport` for it.
- What is no message of kombu's is one that cannot be decoded, not an exception for whoever meets it. Put
  back, it is what it was. Published, it is dropped.
- The keys of unacknowledged messages are our own: our short visibility timeout must not restore those of
  other applications in the same database.
- TLS is what `core.tls` reads from the URL: certificates and host names are checked unless it says otherwise.
"""

from __future__ import annotations

import base64
import logging
import re
import time
import uuid
from queue import Empty
from typing import Any, ClassVar

from kombu import Connection
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from conductor.broker.plain_message import PlainMessage
from conductor.broker.results import script
from conductor.broker.topology import EVENTS, REPLIES, WORK, work_queue
from conductor.core.tls import read_tls

logger = logging.getLogger(__name__)

_MODULE = "conductor.broker.redis_transport"
TRANSPORTS = {
    "redis": f"{_MODULE}:Transport",
    "rediss": f"{_MODULE}:TLSTransport",
    "sentinel": f"{_MODULE}:SentinelTransport",
}

#: What makes a pattern of a topic.
_GLOB = re.compile(r"[*?\[\]\\]")
_OURS = (EVENTS, REPLIES)

# `Connection.as_uri`, which Celery prints and Flower parses, shows the word behind the class.
Connection.resolve_aliases.update({name: scheme for scheme, name in TRANSPORTS.items()})


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """Keeps its unacknowledged messages from being taken for abandoned."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message until it is acknowledged."""
        if delivery_tag == self.channel.taken_tag:
            VirtualQoS.append(self, message, delivery_tag)  # It is noted already.
        else:
            super().append(message, delivery_tag)

    def restore_visible(self, *arguments: Any, **options: Any) -> None:
        """Put back what others abandoned, in nodes."""
        if self.channel.puts_back:
            super().restore_visible(*arguments, **options)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back, whatever it is; kombu 5.7 raises for ever where it cannot read one."""

        def restore(pipe: Any) -> None:
            entry = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)
            push = pipe.lpush if leftmost else pipe.rpush
            for key, text in self.channel.places_of(entry, bytes_to_str(tag)) if entry else ():
                push(key, text)

        with self.channel.conn_or_acquire(client) as server:
            server.transaction(restore, self.unacked_key)

    def touch(self) -> None:
        """Tell that the messages held here are still being worked on."""
        held = [tag for tag in self._delivered if tag not in self._dirty]
        if held:
            now = time.time()
            with self.channel.conn_or_acquire() as client:
                client.zadd(self.unacked_index_key, dict.fromkeys(held, now), xx=True)


class Message(virtual.Message, PlainMessage):  # type: ignore[misc]
    """A message of `Channel`."""


class _ChannelMixin:
    """What our channels do otherwise; see the module."""

    QoS = QoS
    Message = Message
    unacked_key = "conductor.unacked"
    unacked_index_key = "conductor.unacked_index"
    unacked_mutex_key = "conductor.unacked_mutex"
    #: Seconds; a node killed while it restores must not keep the others from it for kombu's 5 minutes.
    unacked_mutex_expire = 10
    #: Messages are JSON text, which base64 would make longer and slower.
    body_encoding = None
    _fanout_queues: ClassVar[dict[str, tuple[str, str]]] = {}
    puts_back = False
    taken_tag: str | None = None
    _take_script: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._shared_clients: dict[bool, Any] = {}
        super().__init__(*args, **kwargs)

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = self._shared_clients.get(asynchronous)
        if client is None:
            client = super()._create_client(asynchronous)  # type: ignore[misc]
            self._shared_clients[asynchronous] = client
        return client

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Write bytes as the text they are; kombu 5.7 makes an object of them that only kombu reads."""
        if not isinstance(body, bytes):
            return body, encoding
        try:
            return body.decode("utf-8"), None
        except UnicodeDecodeError:
            return base64.b64encode(body).decode("ascii"), "base64"

    def basic_get(self, queue: str, no_ack: bool = False, **options: Any) -> Any:
        message = super().basic_get(queue, **options)  # type: ignore[misc]
        if message is not None and no_ack:
            message.ack()
        return message

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        found = self._take([queue])
        if found is None:
            raise Empty
        return found[1]

    def _take(self, queues: list[str]) -> tuple[str, Any] | None:
        """Take the first message of the queues; gives the queue it was in, and the message."""
        steps = self.priority_steps  # type: ignore[attr-defined]
        lists = [(queue, self._q_for_pri(queue, step)) for step in steps for queue in queues]  # type: ignore[attr-defined]
        keys = [*(key for _, key in lists), self.unacked_key, self.unacked_index_key]
        tag = uuid.uuid4().hex
        found = self._run_take(keys, [time.time(), tag, *(queue for queue, _ in lists)])
        if found is None:
            return None
        number, text = found
        queue = lists[number - 1][0]
        self.taken_tag = tag
        return queue, self._decode(text, queue, tag)

    def _run_take(self, keys: list[str], arguments: list[str | float]) -> Any:
        with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
            if self._take_script is None:
                self._take_script = client.register_script(script("take_task"))
            return self._take_script(keys, arguments, client)

    def _decode(self, text: bytes, queue: str, tag: str) -> dict[str, Any]:
        """Give the message; what is none of kombu's is one of the bytes that it is."""
        try:
            message: dict[str, Any] = loads(text)
            self._check(message, tag)
            if work_queue(queue) is not None:
                # What it says itself may be forged, and a signature holds for one queue.
                message["properties"]["delivery_info"]["routing_key"] = queue
        except Exception:  # What is in a list may be anything.
            logger.debug("what was taken from %s cannot be read", queue, exc_info=True)
        else:
            return message
        return {
            "body": base64.b64encode(text).decode(),
            "headers": {},
            "content-type": "application/octet-stream",
            "content-encoding": "binary",
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": tag,
                "delivery_info": {"exchange": WORK, "routing_key": queue},
            },
        }

    def _check(self, found: Any, tag: str) -> None:
        """Raise something for what is no message of kombu's; give one the tag that it is noted under."""
        match found:
            case {
                "body": str(body),
                "headers": dict(),
                "properties": {"delivery_info": {"exchange": str(), "routing_key": str()}} as properties,
            }:
                body.encode()
                properties["delivery_tag"] = tag
                self.Message(found, channel=self)
            case _:
                raise ValueError("this is no message of kombu's")

    def places_of(self, entry: bytes, tag: str) -> list[tuple[str, str | bytes]]:
        """Give the lists that a noted message goes back into, and what goes there."""
        try:
            message, exchange, routing_key = loads(entry)
            self._check(message, tag)
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
            step, text = self._get_message_priority(message), dumps(message)  # type: ignore[attr-defined]
        except Exception:  # noqa: BLE001 - see `_decode`
            # It goes back as it is, and whoever takes it next will see to it.
            whole, _, queue = entry.rpartition(b',"')
            return [(loads(b'"' + queue[:-1]), whole.rpartition(b',"')[0][1:])]
        queues = self._lookup(exchange, routing_key)  # type: ignore[attr-defined]
        return [(self._q_for_pri(queue, step), text) for queue in queues]  # type: ignore[attr-defined]

    def _disconnect_pools(self) -> None:
        self._shared_clients.clear()
        super()._disconnect_pools()  # type: ignore[misc]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type != "fanout":  # type: ignore[attr-defined]
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]
            return
        key = routing_key if exchange in _OURS else routing_key.replace("#", "*")
        self._fanout_queues[queue] = (exchange, key)

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        if queue in self._fanout_queues:
            self._in_listen = None  # makes the poller subscribe again, now with this queue
        return super().basic_consume(queue, *args, **kwargs)  # type: ignore[misc]

    def _subscribe(self) -> None:
        topics = [topic for queue in self._listening() for topic in self._get_subscribe_topics(queue)]  # type: ignore[attr-defined]
        patterns = list(filter(_GLOB.search, topics))
        names = [topic for topic in topics if topic not in patterns]
        client = self.subclient  # type: ignore[attr-defined]
        if topics and client.connection._sock is None:  # noqa: SLF001
            client.connection.connect()
        for subscribe, some in ((client.psubscribe, patterns), (client.subscribe, names)):
            if some:
                self._in_listen = client.connection
                subscribe(*some)

    def _unsubscribe_from(self, queue: str) -> None:
        if self._fanout_queues[queue] in map(self._fanout_queues.get, self._listening()):
            return
        client = self.subclient  # type: ignore[attr-defined]
        if client.connection and client.connection._sock:  # noqa: SLF001
            for topic in self._get_subscribe_topics(queue):  # type: ignore[attr-defined]
                (client.punsubscribe if _GLOB.search(topic) else client.unsubscribe)(topic)

    def _receive_one(self, client: Any) -> bool:
        """Deliver what was published, unless it is no message of kombu's: everybody may publish."""
        try:
            response = client.parse_response()
        except self.connection_errors:  # type: ignore[attr-defined]
            self._in_listen = None
            raise
        if not isinstance(response, list | tuple):
            return False
        payload = self._handle_message(client, response)  # type: ignore[attr-defined]
        if not bytes_to_str(payload["type"]).endswith("message"):
            return False
        topic = bytes_to_str(payload["pattern"] or payload["channel"])
        try:
            message = loads(payload["data"])
            self._check(message, uuid.uuid4().hex)
        except Exception as error:  # noqa: BLE001 - see `_decode`
            logger.warning("What came on %s is no message and is dropped: %s", topic, str(error)[:500])
            return False
        for queue in self._listening():
            if topic in self._get_subscribe_topics(queue):  # type: ignore[attr-defined]
                self.connection._deliver(dict(message), queue)  # type: ignore[attr-defined]  # noqa: SLF001
        return True

    def _listening(self) -> list[str]:
        return list(self.active_fanout_queues)  # type: ignore[attr-defined]


class Channel(_ChannelMixin, kombu_redis.Channel):  # type: ignore[misc]
    """A channel of `Transport`."""


class SentinelChannel(_ChannelMixin, kombu_redis.SentinelChannel):  # type: ignore[misc]
    """A channel of `SentinelTransport`."""


class _TransportMixin:
    """Has the consumers' messages touched while Celery's event loop runs."""

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]
        cycle = self.cycle  # type: ignore[attr-defined]
        interval = connection.client.transport_options.get("touch_interval")
        if previous := getattr(cycle, "touch_tref", None):
            previous.cancel()
        if interval:
            cycle.touch_tref = loop.call_repeatedly(interval, self._touch)

    def _touch(self) -> None:
        for channel in list(self.cycle._channels):  # type: ignore[attr-defined]  # noqa: SLF001
            try:
                channel.qos.touch()
            except channel.connection_errors:
                # The main loop meets the broken connection as well, and handles it.
                kombu_redis.logger.debug("touching unacknowledged messages failed", exc_info=True)


class Transport(_TransportMixin, kombu_redis.Transport):  # type: ignore[misc]
    """redis://"""

    Channel = Channel


class TLSTransport(Transport):
    """rediss://"""

    def __init__(self, client: Connection, **kwargs: Any) -> None:
        if not client.ssl:
            client.ssl = read_tls("rediss://")
        super().__init__(client, **kwargs)


class SentinelTransport(_TransportMixin, kombu_redis.SentinelTransport):  # type: ignore[misc]
    """sentinel://, with the name of the master in the URL: `?master_name=mymaster`."""

    Channel = SentinelChannel
