"""The message bus across processes, over Redis, Valkey or RabbitMQ."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from conductor.broker.session import BusSettings, Session
from conductor.broker.topology import EVENTS, REPLIES, REPLY_TO_ANY
from conductor.broker.transport import scheme_of
from conductor.core.channels import validate_channel, validate_pattern
from conductor.core.config import mask_url
from conductor.core.exceptions import ConfigurationError
from conductor.orchestration.message_bus import (
    Callback,
    MessageBus,
    check_callback,
    encode_message,
    not_connected,
)
from conductor.orchestration.pending import PendingRequests, discard

if TYPE_CHECKING:
    from collections.abc import Awaitable

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
    """

    def __init__(
        self,
        url: str,
        *,
        bus_id: str | None = None,
        buffer_size: int = 65536,
        publish_timeout: float = 10.0,
        connect_timeout: float = 5.0,
    ) -> None:
        scheme_of(url)
        for name, value in (
            ("buffer_size", buffer_size),
            ("publish_timeout", publish_timeout),
            ("connect_timeout", connect_timeout),
        ):
            if not value > 0:
                raise ConfigurationError(f"{name} must be greater than 0, not {value!r}")
        self._settings = BusSettings(
            url=url,
            bus_id=bus_id or uuid.uuid4().hex,
            buffer_size=buffer_size,
            publish_timeout=publish_timeout,
            connect_timeout=connect_timeout,
        )
        self._pending = PendingRequests()
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

    async def connect(self) -> None:
        """See `MessageBus.connect`.

        MessageBusError: BROKER_UNAVAILABLE within `connect_timeout`, BROKER_AUTH_FAILED, BROKER_REFUSED.
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
        body = encode_message(message)
        if message.is_expired():
            return
        self._published += 1
        correlation_id = message.correlation_id
        sent = session.publisher.publish(EVENTS, channel, body, correlation_id=correlation_id)
        if correlation_id is None:
            await sent
            return
        unknown = () if self._pending.resolve(message) else (REPLY_TO_ANY,)
        answered = [
            session.publisher.publish(REPLIES, inbox, body, correlation_id=correlation_id)
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
        body = encode_message(message)
        await session.publisher.publish(REPLIES, inbox, body, correlation_id=message.correlation_id)

    def asker_of(self, message: AgentMessage) -> str | None:
        """The inbox of who waits for an answer to a message received here, None when nobody is known."""
        session = self._require("look for an asker")
        inboxes = session.origins.find(message.correlation_id or message.message_id)
        return inboxes[-1] if inboxes else None

    async def subscribe(self, channel: str, callback: Callback) -> None:
        """See `MessageBus.subscribe`.

        MessageBusError: BROKER_UNAVAILABLE after `publish_timeout`; there is no subscription then.
        """
        session = self._require("subscribe")
        validate_pattern(channel)
        check_callback(callback)
        await session.subscribe(channel, callback)

    async def unsubscribe(self, channel: str) -> None:
        """See `MessageBus.unsubscribe`; the broker is told, not waited for."""
        session = self._require("unsubscribe")
        validate_pattern(channel)
        session.unsubscribe(channel)

    async def request(self, channel: str, message: AgentMessage, timeout: float = 30.0) -> AgentMessage:
        """See `MessageBus.request`."""
        session = self._require("request")
        validate_channel(channel)
        encode_message(message)
        answer_by = time.time() + timeout

        def ask(channel: str, question: AgentMessage) -> Awaitable[None]:
            if session.listens_for_answers:
                return self._ask(session, channel, question, answer_by)
            return self._listen_and_ask(session, channel, question, answer_by)

        return await self._pending.ask(channel, message, timeout, ask)

    async def _listen_and_ask(
        self, session: Session, channel: str, question: AgentMessage, answer_by: float
    ) -> None:
        await session.listen_for_answers()
        await self._ask(session, channel, question, answer_by)

    def _ask(
        self, session: Session, channel: str, question: AgentMessage, answer_by: float
    ) -> asyncio.Future[None]:
        if question.is_expired():
            dropped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            dropped.set_result(None)
            return dropped
        self._published += 1
        return session.publisher.publish(
            EVENTS,
            channel,
            encode_message(question),
            reply_to=self.bus_id,
            correlation_id=question.correlation_id,
            answer_by=answer_by,
        )

    def _require(self, operation: str) -> Session:
        if self._session is None or self._session.loop.is_closed():
            raise not_connected(operation)
        return self._session

    def _leave_closed_loop(self) -> None:
        """Forget a session that nobody closed before its event loop was; nothing can be waited for there."""
        if self._session is not None and self._session.loop.is_closed():
            self._session.abandon()
            self._session, self._pending, self._published = None, PendingRequests(), 0


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
