"""The bus's connections to Redis and Valkey: PUB/SUB in kombu's format, without kombu's cost per message."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
from pydantic_core import from_json, to_json
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from conductor.broker.results import script
from conductor.broker.topology import EVENTS, GROUP_REGISTRY, REDIS, event_binding_key
from conductor.broker.wire import Address, Incoming, Outgoing, Raw, headers_of, incoming_from, missing_right
from conductor.core.channels import is_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

#: Bytes to read at once, which is also how long the thread keeps the interpreter from the event loop.
_GULP = 256 * 1024
_NOT_ENOUGH = object()
_HEAD = b'{"body":'
_MIDDLE = b',"content-encoding":"utf-8","content-type":"application/json","headers":'
_PROPERTIES = (
    b',"properties":{"body_encoding":null,"delivery_mode":1,"priority":0,"delivery_info":{"exchange":'
)


class _RedisLink:
    """One socket, taken from kombu's channel so that URL, TLS and Sentinel are kombu's business."""

    def __init__(self, connection: Connection) -> None:
        self._kombu = connection
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            channel = connection.default_channel
            self._socket = channel.async_pool.get_connection()
        except BaseException:
            self.close()
            raise
        self._prefix = channel.keyprefix_fanout

    def _topic(self, exchange: str, key: str) -> bytes:
        return f"{self._prefix}{exchange}/{key}".encode()

    def close(self) -> None:
        """See `Sender.close`."""
        with contextlib.suppress(Exception):
            self._kombu.release()
        with contextlib.suppress(Exception):
            self._socket.disconnect()


class RedisSender(_RedisLink):
    """Publishes batches, each as one script: who subscribes and what groups wait for are one step.

    PUB/SUB keeps nothing, so the script also feeds the queues of groups. A group that is registered before
    the batch gets all of it; there is no moment in which a message is seen by subscribers and lost for it.
    """

    batch_size = 256

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        try:
            self._load_script()
        except BaseException:
            self.close()
            raise

    def send(self, batch: list[Outgoing]) -> None:
        """See `Sender.send`."""
        command = self._command(batch)
        try:
            refused = self._ask(command)
        except NoScriptError:
            self._load_script()
            refused = self._ask(command)
        for index, reason in zip(refused[::2], refused[1::2], strict=True):
            batch[index - 1].error = ResponseError(reason.decode(errors="replace"))
        for out in batch:
            out.confirmed = True

    def _ask(self, command: bytes) -> Any:
        self._socket.send_packed_command([command], check_health=False)
        return self._socket.read_response()

    def _load_script(self) -> None:
        self._socket.send_command("SCRIPT", "LOAD", script("publish_events"))
        self._sha = self._socket.read_response()

    def _command(self, batch: list[Outgoing]) -> bytes:
        """EVALSHA in Redis's protocol; the way through redis-py takes longer than all the rest."""
        words = [b"EVALSHA", self._sha, b"1", GROUP_REGISTRY.encode()]
        for out in batch:
            channel = out.routing_key.encode() if out.exchange == EVENTS else b""
            words += (self._topic(out.exchange, out.routing_key), channel, envelope(out))
        return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class RedisReceiver(_RedisLink):
    """Receives in gulps; a name is SUBSCRIBEd, which costs the server less than a pattern.

    Once redis-py has made the connection, its socket is read here: redis-py takes two more system calls and
    an exception for each gulp, and formats each message for a debug log.
    """

    more = False

    def __init__(self, connection: Connection, confirmed: Callable[[Address], None]) -> None:
        super().__init__(connection)
        self._confirmed = confirmed
        self._addresses: dict[bytes, Address] = {}
        self._unconfirmed: deque[Address] = deque()
        self._unanswered_ping = False
        self._reader = hiredis.Reader(notEnoughData=_NOT_ENOUGH)
        self._raw = self._socket._sock  # noqa: SLF001
        self._io_timeout = self._raw.gettimeout()
        self._raw.settimeout(0)

    def fileno(self) -> int:
        """See `Receiver.fileno`."""
        number: int = self._raw.fileno()
        return number

    def add(self, address: Address) -> None:
        """See `Receiver.add`."""
        topic = self._topic_of(address)
        address.refusal = None
        self._addresses[topic] = address
        self._unconfirmed.append(address)
        self._command(f"{_prefix_of(address)}SUBSCRIBE", topic)

    def drop(self, address: Address) -> None:
        """See `Receiver.drop`."""
        topic = self._topic_of(address)
        self._addresses.pop(topic, None)
        self._command(f"{_prefix_of(address)}UNSUBSCRIBE", topic)

    def receive(self) -> list[Raw]:
        """See `Receiver.receive`."""
        received: list[Raw] = []
        try:
            data = self._raw.recv(_GULP)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.more = False
            return received
        if not data:
            raise RedisConnectionError("the broker closed the connection")
        # TLS hands over a record at a time and keeps the rest where poll() does not see it.
        self.more = len(data) == _GULP or bool(isinstance(self._raw, ssl.SSLSocket) and self._raw.pending())
        self._unanswered_ping = False
        reader, addresses = self._reader, self._addresses
        reader.feed(data)
        while (reply := reader.gets()) is not _NOT_ENOUGH:
            if isinstance(reply, Exception):
                self._refuse(ResponseError(str(reply)))
                continue
            kind = reply[0]
            if kind in (b"message", b"pmessage"):
                address = addresses.get(reply[1])
                if address is not None:
                    received.append((address, reply[-2], reply[-1]))
            elif kind in (b"subscribe", b"psubscribe"):
                self._confirmed(self._unconfirmed.popleft())
        return received

    def _refuse(self, error: ResponseError) -> None:
        """Note that the subscription is refused whose turn it is."""
        if not self._unconfirmed or missing_right(error) is None:
            raise error
        address = self._unconfirmed.popleft()
        address.refusal = error
        self._confirmed(address)

    def check(self) -> None:
        """See `Receiver.check`."""
        if self._unanswered_ping:
            raise RedisConnectionError("the broker does not answer a PING")
        self._unanswered_ping = True
        self._command("PING")

    def channel(self, raw: Raw) -> str:
        """See `Receiver.channel`."""
        topic: bytes = raw[1]
        return topic.decode(errors="replace").split("/", 2)[-1]

    def size(self, raw: Raw) -> int:
        """See `Receiver.size`."""
        return len(raw[2])

    def decode(self, raw: Raw) -> Incoming:
        """See `Receiver.decode`."""
        message: dict[str, Any] = from_json(raw[2])
        properties: dict[str, Any] = message["properties"]
        headers: dict[str, Any] = message["headers"]
        body = message["body"]
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        return incoming_from(self.channel(raw), body, properties, headers)

    def _topic_of(self, address: Address) -> bytes:
        key = address.key
        if address.exchange == EVENTS and is_pattern(key):
            key = event_binding_key(REDIS, key)
        return self._topic(address.exchange, key)

    def _command(self, *words: str | bytes) -> None:
        self._raw.settimeout(self._io_timeout)
        try:
            self._socket.send_command(*words, check_health=False)
        finally:
            self._raw.settimeout(0)


def envelope(out: Outgoing) -> bytes:
    """Write `out` as kombu's virtual transports do, the body as text."""
    headers = b"{}" if out.answer_by is None and out.headers is None else to_json(headers_of(out))
    parts = [
        _HEAD,
        to_json(out.body),
        _MIDDLE,
        headers,
        _PROPERTIES,
        to_json(out.exchange),
        b',"routing_key":',
        to_json(out.routing_key),
        b'},"delivery_tag":',
        to_json(out.tag),
    ]
    if out.reply_to is not None:
        parts += [b',"reply_to":', to_json(out.reply_to)]
    if out.correlation_id is not None:
        parts += [b',"correlation_id":', to_json(out.correlation_id)]
    parts.append(b"}}")
    return b"".join(parts)


def _prefix_of(address: Address) -> str:
    return "P" if address.exchange == EVENTS and is_pattern(address.key) else ""
