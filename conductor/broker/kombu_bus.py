"""The message bus across processes, over Redis, Valkey or RabbitMQ."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from conductor.broker.refused_messages import REDIS_SCHEMES
from conductor.broker.session import BusSettings, Session
from conductor.broker.signing import configured_signer
from conductor.broker.topology import EVENTS, REPLIES, REPLY_TO_ANY
from conductor.broker.transport import system_of, tls_settings
from conductor.core.channels import RESPONSE, validate_channel, validate_group, validate_pattern
from conductor.core.config import mask_url
from conductor.core.exceptions import ConfigurationError
from conductor.core.message_size import DEFAULT_MAX_MESSAGE_BYTES
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.core.retry import RetryPolicy
from conductor.core.tls import read_tls
from conductor.orchestration.groups import check_membership
from conductor.orchestration.message_bus import (
    Callback,
    MessageBus,
    as_question,
    check_callback,
    encode_message,
    not_connected,
)
from conductor.orchestration.message_spans import publishing, requesting
from conductor.orchestration.pending import PendingRequests, discard

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from conductor.broker.addresses import Addresses
    from conductor.broker.signing import Signer
    from conductor.core.config import ConductorConfig
    from conductor.core.messages import AgentMessage


class KombuMessageBus(MessageBus):
    """Carries messages between processes; the event loop never waits for the broker.

    One thread publishes, one consumes, each over one connection. Both come back by themselves when the
    broker does, with all subscriptions; what others publish while a subscriber is cut off is lost for it.
    Messages of one publisher arrive in order. While a connection breaks, a message may arrive twice.

    Args:
        url: the broker: redis://, rediss://, sentinel://, amqp:// or amqps://.
        bus_id: names the inbox for answers; unique among all buses of the broker.
        buffer_size: messages that wait for the callback of one subscription; further ones are dropped,
            counted in `dropped_count` and logged.
        publish_timeout: seconds that publishing and subscribing wait for an absent broker, then
            MessageBusError with code BROKER_UNAVAILABLE. The message may have arrived nevertheless.
        connect_timeout: seconds that `connect` waits.
        max_message_bytes: bytes of a message as JSON; a larger one is a MessageBusError with code
            MESSAGE_TOO_LARGE, and one that was received is dropped, counted in `refused_count` and logged.
        retry_policy: when members of groups try a failed message again; RetryPolicy() by default.
        max_losses: how often a message may be with a member that dies before it is a dead letter.
        dedup_url: the Redis where groups on RabbitMQ note what they had; for `deduplicate` only.
        visibility_timeout: seconds; on Redis how long a message stays with a member that gives no sign of
            life, on RabbitMQ how long a member may have a message before the broker's `consumer_timeout` is
            kept from it.
        touch_interval: seconds; how often members give a sign of life, or look after the `consumer_timeout`.
        restore_interval: seconds, on Redis; how often members look for messages whose member gave none.
        metrics: what takes the numbers, such as PrometheusMetrics; nobody by default.
        signer: signs what is published and asked, and refuses what nobody with a key sent: it is dropped,
            counted in `refused_count`, and becomes a dead letter. A Conductor gives its bus one where
            `signing` has keys.
    """

    def __init__(
        self,
        url: str,
        *,
        bus_id: str | None = None,
        buffer_size: int = 65536,
        publish_timeout: float = 10.0,
        connect_timeout: float = 5.0,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        retry_policy: RetryPolicy | None = None,
        max_losses: int = 3,
        dedup_url: str | None = None,
        visibility_timeout: float = 15.0,
        touch_interval: float = 3.0,
        restore_interval: float = 3.0,
        metrics: Metrics = NO_METRICS,
        signer: Signer | None = None,
    ) -> None:
        tls_settings(url)
        for name, value in (
            ("buffer_size", buffer_size),
            ("publish_timeout", publish_timeout),
            ("connect_timeout", connect_timeout),
            ("max_message_bytes", max_message_bytes),
            ("max_losses", max_losses),
            ("visibility_timeout", visibility_timeout),
            ("touch_interval", touch_interval),
            ("restore_interval", restore_interval),
        ):
            if not value > 0:
                raise ConfigurationError(f"{name} must be greater than 0, not {value!r}")
        if touch_interval * 2 > visibility_timeout:
            raise ConfigurationError(
                f"touch_interval ({touch_interval:g} s) must be at most half of visibility_timeout "
                f"({visibility_timeout:g} s), else a message that is worked on is given to another member"
            )
        if dedup_url is not None and urlsplit(dedup_url).scheme not in REDIS_SCHEMES:
            raise ConfigurationError(
                f"dedup_url {mask_url(dedup_url)!r} is no Redis; it begins with one of "
                f"{', '.join(f'{scheme}://' for scheme in REDIS_SCHEMES)}"
            )
        if dedup_url is not None:
            read_tls(dedup_url)
        self._settings = BusSettings(
            url=url,
            bus_id=bus_id or uuid.uuid4().hex,
            buffer_size=buffer_size,
            publish_timeout=publish_timeout,
            connect_timeout=connect_timeout,
            max_message_bytes=max_message_bytes,
            retry_policy=retry_policy or RetryPolicy(),
            max_losses=max_losses,
            dedup_url=dedup_url,
            visibility_timeout=visibility_timeout,
            touch_interval=touch_interval,
            restore_interval=restore_interval,
            metrics=metrics,
            signer=signer,
        )
        self._pending = PendingRequests(metrics)
        self._session: Session | None = None
        self._connecting = _Once()
        self._published = 0

    def __repr__(self) -> str:
        state = "connected" if self.is_connected else "not connected"
        return f"<KombuMessageBus {self.bus_id} at {mask_url(self._settings.url)}, {state}>"

    @property
    def bus_id(self) -> str:
        """The routing key, on the exchange `conductor.replies`, of answers to this bus."""
        return self._settings.bus_id

    @property
    def system(self) -> str:
        """The kind of broker, as spans have it: redis or rabbitmq."""
        return system_of(self._settings.url)

    @property
    def is_connected(self) -> bool:
        """See `MessageBus.is_connected`; a bus whose event loop was closed is not connected any more."""
        return self._session is not None and not self._session.loop.is_closed()

    @property
    def published_count(self) -> int:
        """See `MessageBus.published_count`."""
        return self._published

    @property
    def dropped_count(self) -> int:
        """How many messages full buffers could not take since connecting."""
        return self._session.tally.dropped if self._session is not None else 0

    @property
    def invalid_count(self) -> int:
        """How many received messages were no AgentMessage, since connecting."""
        return self._session.tally.invalid if self._session is not None else 0

    @property
    def refused_count(self) -> int:
        """How many received messages were refused, for their size or signature, since connecting."""
        return self._session.tally.refused if self._session is not None else 0

    async def connect(self) -> None:
        """See `MessageBus.connect`.

        MessageBusError: BROKER_UNAVAILABLE within `connect_timeout`, BROKER_AUTH_FAILED, BROKER_FORBIDDEN,
        BROKER_REFUSED.
        """
        async with self._connecting.lock():
            self._leave_closed_loop()
            if self._session is None:
                session = Session(self._settings, self._pending)
                await session.open()
                self._session = session

    async def disconnect(self) -> None:
        """See `MessageBus.disconnect`; what is being published still goes out if the broker is there."""
        self._leave_closed_loop()
        session, self._session = self._session, None
        if session is not None:
            self._published = 0
            self._pending.fail_all()
            await session.close()

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """See `MessageBus.publish`. It returns when the broker has the message.

        A message with a correlation id goes to the inbox of who asked as well.
        """
        session = self._require("publish")
        validate_channel(channel)
        body = self._encode(message)
        if message.is_expired():
            session.counts.expired()
            return
        self._published += 1
        session.counts.published(channel)
        if session.tracing is None:
            # The many: a coroutine more would cost each of them more than looking at it does.
            if message.correlation_id is None:
                await session.publisher.publish(EVENTS, channel, body)
            else:
                await self._publish(session, channel, message, body)
            return
        with publishing(session.tracing, session.system, channel, message):
            await self._publish(session, channel, message, body, session.tracing.headers())

    async def _publish(
        self,
        session: Session,
        channel: str,
        message: AgentMessage,
        body: bytes,
        trace: dict[str, str] | None = None,
    ) -> None:
        correlation_id = message.correlation_id
        sent = session.publisher.publish(EVENTS, channel, body, correlation_id=correlation_id, headers=trace)
        if correlation_id is None:
            await sent
            return
        unknown = () if self._pending.resolve(message) else (REPLY_TO_ANY,)
        answered = [
            session.publisher.publish(REPLIES, inbox, body, correlation_id=correlation_id, headers=trace)
            for inbox in session.origins.find(correlation_id) or unknown
        ]
        try:
            for future in (sent, *answered):
                await future
        finally:
            for future in answered:
                discard(future)

    async def reply(self, inbox: str, message: AgentMessage) -> None:
        """Send `message` to the inbox of who asked, its `bus_id`, and nowhere else."""
        session = self._require("reply")
        body, asked = self._encode(message), message.correlation_id
        with publishing(session.tracing, session.system, RESPONSE, message):
            trace = _trace_of(session)
            await session.publisher.publish(REPLIES, inbox, body, correlation_id=asked, headers=trace)

    def asker_of(self, message: AgentMessage) -> str | None:
        """The inbox of who waits for an answer to a message received here, None when nobody is known."""
        session = self._require("look for an asker")
        inboxes = session.origins.find(message.correlation_id or message.message_id)
        return inboxes[-1] if inboxes else None

    async def subscribe(
        self, channel: str, callback: Callback, group: str | None = None, deduplicate: float | None = None
    ) -> None:
        """See `MessageBus.subscribe`.

        MessageBusError: BROKER_UNAVAILABLE after `publish_timeout`; there is no subscription then.
        DEDUPLICATION_UNAVAILABLE: RabbitMQ and no `dedup_url`.
        """
        session = self._require("subscribe")
        validate_pattern(channel)
        check_callback(callback)
        check_membership(group, deduplicate)
        if group is None:
            await session.subscribe(channel, callback)
        else:
            await session.groups.subscribe(channel, callback, group, deduplicate)

    async def listen(self, channel: str, callback: Callback) -> None:
        """Subscribe a callback that makes spans itself, where they are wanted."""
        await self._require("subscribe").subscribe(channel, callback, in_span=False)

    async def unsubscribe(self, channel: str) -> None:
        """See `MessageBus.unsubscribe`; the broker is told, and waited for only where a group is left."""
        session = self._require("unsubscribe")
        validate_pattern(channel)
        await session.unsubscribe(channel)

    async def delete_group(self, channel: str, group: str) -> None:
        """See `MessageBus.delete_group`; MessageBusError, BROKER_UNAVAILABLE after `publish_timeout`."""
        session = self._require("delete a group")
        validate_pattern(channel)
        validate_group(group)
        await session.groups.delete(channel, group)

    async def request(self, channel: str, message: AgentMessage, timeout: float = 30.0) -> AgentMessage:
        """See `MessageBus.request`."""
        session = self._require("request")
        validate_channel(channel)
        question = as_question(message)
        body = self._encode(question)
        answer_by = time.time() + timeout

        def ask(channel: str, question: AgentMessage) -> Awaitable[None]:
            if session.listens_for_answers:
                return self._ask(session, channel, question, body, answer_by)
            return self._listen_and_ask(session, channel, question, body, answer_by)

        with requesting(session.tracing, session.system, channel, message):
            return await self._pending.ask(channel, question, timeout, ask)

    async def _listen_and_ask(
        self, session: Session, channel: str, question: AgentMessage, body: bytes, answer_by: float
    ) -> None:
        await session.listen_for_answers()
        await self._ask(session, channel, question, body, answer_by)

    def _ask(
        self, session: Session, channel: str, question: AgentMessage, body: bytes, answer_by: float
    ) -> asyncio.Future[None]:
        if question.is_expired():
            session.counts.expired()
            dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            dropped.set_result(None)
            return dropped
        self._published += 1
        session.counts.published(channel)
        return session.publisher.publish(
            EVENTS,
            channel,
            body,
            reply_to=self.bus_id,
            correlation_id=question.correlation_id,
            answer_by=answer_by,
            headers=_trace_of(session),
        )

    def _encode(self, message: AgentMessage) -> bytes:
        return encode_message(message, self._settings.max_message_bytes, self._settings.metrics)

    def _require(self, operation: str) -> Session:
        if self._session is None or self._session.loop.is_closed():
            raise not_connected(operation)
        return self._session

    def _leave_closed_loop(self) -> None:
        """Forget a session that nobody closed before its event loop was; nothing can be waited for there."""
        if self._session is not None and self._session.loop.is_closed():
            self._session.abandon()
            self._session, self._published = None, 0
            self._pending = PendingRequests(self._settings.metrics)


def _trace_of(session: Session) -> dict[str, str] | None:
    return None if session.tracing is None else session.tracing.headers()


def configured_bus(
    config: ConductorConfig, addresses: Addresses, metrics: Metrics = NO_METRICS
) -> KombuMessageBus:
    """Make the bus that a configuration asks for."""
    return KombuMessageBus(
        addresses.broker_url,
        buffer_size=config.bus.buffer_size,
        publish_timeout=config.bus.publish_timeout,
        connect_timeout=config.bus.connect_timeout,
        max_message_bytes=config.bus.max_message_bytes,
        retry_policy=config.errors.retry,
        max_losses=config.errors.max_worker_losses,
        dedup_url=addresses.redis_url,
        visibility_timeout=config.work.visibility_timeout,
        touch_interval=config.work.touch_interval,
        restore_interval=config.work.restore_interval,
        metrics=metrics,
        signer=configured_signer(config),
    )


class _Once:
    """A lock of the running loop: asyncio's belongs for ever to the first loop on which somebody waited."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    def lock(self) -> asyncio.Lock:
        """The lock, a new one on a new loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lock = loop, asyncio.Lock()
        return self._lock
