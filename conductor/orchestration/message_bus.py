"""The message bus: the contract, and the implementation for one process."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import PydanticSerializationError

from conductor.core.channels import DLQ, compile_pattern, validate_channel, validate_pattern
from conductor.core.dead_letters import DeadLetter, announcement
from conductor.core.exceptions import MessageBusError
from conductor.core.log_ids import current_message
from conductor.core.message_size import DEFAULT_MAX_MESSAGE_BYTES, check_size
from conductor.core.messages import AgentMessage
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.core.retry import RetryPolicy
from conductor.core.tracing import find_tracing
from conductor.orchestration.groups import check_membership
from conductor.orchestration.memory_groups import MemoryGroup
from conductor.orchestration.message_counts import MessageCounts
from conductor.orchestration.message_spans import (
    IN_MEMORY,
    processing,
    publishing,
    requesting,
    run_in_span,
)
from conductor.orchestration.pending import PendingRequests

if TYPE_CHECKING:
    from types import TracebackType

    from conductor.core.tracing import Tracing

logger = logging.getLogger(__name__)

Callback = Callable[[AgentMessage], Awaitable[None]]

#: Seconds that disconnecting waits for callbacks that do not let themselves be cancelled.
CALLBACK_END_LIMIT = 5.0

#: Dead letters that a bus of one process keeps.
MAX_DEAD_LETTERS = 10_000


class MessageBus(ABC):
    """Publish, subscribe and request between agents; every method belongs to one event loop.

    A channel to subscribe to may be a pattern: "*" stands for any characters, also none. Subscribing the
    same callback to the same channel twice is one subscription. Every operation of a bus that is not
    connected is a MessageBusError with code BUS_NOT_CONNECTED, a bad channel is one with INVALID_CHANNEL.
    """

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether `connect` was called and `disconnect` was not; it stays true while a broker is away."""

    @property
    @abstractmethod
    def published_count(self) -> int:
        """How many messages were published since connecting; expired ones do not count."""

    @abstractmethod
    async def connect(self) -> None:
        """Make the bus usable; does nothing when it is."""

    @abstractmethod
    async def disconnect(self) -> None:
        """End all subscriptions and fail pending requests with BUS_DISCONNECTED; does nothing when done.

        Callbacks that are running are cancelled, except the one that calls this.
        """

    @abstractmethod
    async def publish(self, channel: str, message: AgentMessage) -> None:
        """Send `message` to every subscriber of `channel`; an expired one is dropped.

        MessageBusError: INVALID_MESSAGE, and MESSAGE_TOO_LARGE for one that has too many bytes as JSON.
        """

    @abstractmethod
    async def subscribe(
        self, channel: str, callback: Callback, group: str | None = None, deduplicate: float | None = None
    ) -> None:
        """Have `callback` called, one message after the other, with all that is published from now on.

        With a `group` it shares a queue with all callbacks of this group and channel, in whatever process:
        each message goes to one of them, and is done when the callback returned. One that raised is tried
        again, later and by any member, and is a dead letter when the retry policy gives it up. Messages wait
        while the group has no member. The message that a member gets has in its metadata `attempt` (from 1)
        and `redelivered` (whether a member has had it before).

        `deduplicate`: seconds during which a message id that was given to the group is not given to it again;
        all members should name the same. Codes: INVALID_GROUP, INVALID_DEDUPLICATION.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Remove all of this bus's callbacks of `channel`, a name or pattern as given to `subscribe`.

        Groups of `channel` lose these members and keep their queue; see `delete_group`.
        """

    @abstractmethod
    async def delete_group(self, channel: str, group: str) -> None:
        """Remove a group for good, with this bus's members and what waits; no error if there is none.

        Without it the queue of a group that has no members any more grows with every message published.
        Members of other processes should have left before.
        """

    @abstractmethod
    async def request(self, channel: str, message: AgentMessage, timeout: float = 30.0) -> AgentMessage:
        """Publish `message` and return the first other message with its correlation id.

        `timeout` is in seconds; when it is over: MessageBusError with code REQUEST_TIMEOUT.
        """

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()


def not_connected(operation: str) -> MessageBusError:
    """Make the error of an operation on a bus that is not connected."""
    return MessageBusError(
        f"Cannot {operation}: the bus is not connected. Call connect() first, or use 'async with bus'.",
        "BUS_NOT_CONNECTED",
        {"operation": operation},
    )


def encode_message(
    message: AgentMessage, limit: int = DEFAULT_MAX_MESSAGE_BYTES, metrics: Metrics = NO_METRICS
) -> bytes:
    """Write `message` as JSON.

    MessageBusError: INVALID_MESSAGE for what is not one, or has no JSON form; MESSAGE_TOO_LARGE for what has
    more bytes than `limit`, which `metrics` counts.
    """
    _check_kind(message)
    try:
        body = message.__pydantic_serializer__.to_json(message)
    except (PydanticSerializationError, ValueError) as error:
        raise MessageBusError(
            f"Message {message.message_id} cannot be written as JSON: {error}",
            "INVALID_MESSAGE",
            {"message_id": message.message_id},
        ) from error
    check_size(f"Message {message.message_id}", len(body), limit, metrics)
    return body


def as_question(message: AgentMessage) -> AgentMessage:
    """Give what is sent to ask `message`: it has the correlation id of the answers. INVALID_MESSAGE."""
    _check_kind(message)
    return message.model_copy(update={"correlation_id": message.correlation_id or message.message_id})


def _check_kind(message: AgentMessage) -> None:
    if not isinstance(message, AgentMessage):
        raise MessageBusError(
            f"Only an AgentMessage can be published, not {type(message).__name__}.", "INVALID_MESSAGE"
        )


def check_callback(callback: Callback) -> None:
    """Refuse what cannot be called: MessageBusError with code INVALID_CALLBACK."""
    if not callable(callback):
        raise MessageBusError(
            f"A subscription needs an async function of one message, not {callback!r}.", "INVALID_CALLBACK"
        )


async def run_callback(callback: Callback, channel: str, message: AgentMessage) -> Exception | None:
    """Await `callback`; its failure is logged with the message's id, given back, and goes no further."""
    token = current_message.set(message)
    try:
        await callback(message)
    except Exception as error:
        logger.exception(
            "Callback %s of channel %s failed on message %s",
            getattr(callback, "__qualname__", callback),
            channel,
            message.message_id,
        )
        return error
    finally:
        current_message.reset(token)
    return None


class InMemoryMessageBus(MessageBus):
    """The bus of one process and one event loop; it carries copies, as a broker would.

    `publish` returns when the callbacks have run, of a group's member only if it was free at once. Callbacks
    of one message run concurrently. Groups keep what waits while the bus is disconnected.
    """

    def __init__(
        self,
        *,
        retry_policy: RetryPolicy | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._metrics = metrics
        self._counts = MessageCounts(metrics)
        self._connected = False
        self._published = 0
        self._tracing: Tracing | None = None
        self._callbacks: dict[str, list[Callback]] = {}
        self._pending = PendingRequests(metrics)
        self._running: set[asyncio.Task[None]] = set()
        self._retry_policy = retry_policy or RetryPolicy()
        self._groups: dict[tuple[str, str], MemoryGroup] = {}
        self._dead_letters: deque[DeadLetter] = deque(maxlen=MAX_DEAD_LETTERS)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What groups gave up, oldest first; the newest 10,000 are kept."""
        return list(self._dead_letters)

    @property
    def is_connected(self) -> bool:
        """See `MessageBus.is_connected`."""
        return self._connected

    @property
    def published_count(self) -> int:
        """See `MessageBus.published_count`."""
        return self._published

    async def connect(self) -> None:
        """See `MessageBus.connect`."""
        self._connected = True
        self._tracing = find_tracing()

    async def disconnect(self) -> None:
        """See `MessageBus.disconnect`."""
        if not self._connected:
            return
        self._connected = False
        self._published = 0
        self._counts.flush()
        self._counts = MessageCounts(self._metrics)
        self._callbacks.clear()
        for group in self._groups.values():
            group.close()
        self._pending.fail_all()
        await cancel_and_wait(self._running)

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """See `MessageBus.publish`; cancelling it does not cancel the callbacks."""
        self._require_connected("publish")
        validate_channel(channel)
        body = encode_message(message, self._max_message_bytes, self._metrics)
        if message.is_expired():
            self._counts.expired()
            return
        self._published += 1
        self._counts.published(channel)
        with publishing(self._tracing, IN_MEMORY, channel, message):
            await self._deliver(channel, message, body)

    async def _deliver(self, channel: str, message: AgentMessage, body: bytes) -> None:
        self._pending.resolve(message)
        tasks = [
            self._start(self._call(callback, channel, AgentMessage.model_validate_json(body)))
            for pattern, callbacks in list(self._callbacks.items())
            if compile_pattern(pattern)(channel)
            for callback in callbacks
        ]
        for (pattern, _), group in list(self._groups.items()):
            if compile_pattern(pattern)(channel):
                tasks += group.put(channel, message, body)
        if tasks:
            await asyncio.wait(tasks)

    async def _call(self, callback: Callback, channel: str, message: AgentMessage) -> None:
        self._counts.delivered(channel)
        span = processing(self._tracing, IN_MEMORY, channel, message)
        await run_in_span(span, partial(run_callback, callback, channel, message))

    async def subscribe(
        self, channel: str, callback: Callback, group: str | None = None, deduplicate: float | None = None
    ) -> None:
        """See `MessageBus.subscribe`."""
        self._require_connected("subscribe")
        validate_pattern(channel)
        check_callback(callback)
        check_membership(group, deduplicate)
        if group is not None:
            self._group(channel, group).join(callback, deduplicate)
            return
        callbacks = self._callbacks.setdefault(channel, [])
        if callback not in callbacks:
            self._callbacks[channel] = [*callbacks, callback]

    async def unsubscribe(self, channel: str) -> None:
        """See `MessageBus.unsubscribe`."""
        self._require_connected("unsubscribe")
        validate_pattern(channel)
        self._callbacks.pop(channel, None)
        for (pattern, _), group in self._groups.items():
            if pattern == channel:
                group.leave()

    async def delete_group(self, channel: str, group: str) -> None:
        """See `MessageBus.delete_group`."""
        self._require_connected("delete a group")
        validate_pattern(channel)
        check_membership(group, None)
        known = self._groups.pop((channel, group), None)
        if known is not None:
            known.close()

    async def request(self, channel: str, message: AgentMessage, timeout: float = 30.0) -> AgentMessage:
        """See `MessageBus.request`."""
        self._require_connected("request")
        validate_channel(channel)
        question = as_question(message)
        encode_message(question, self._max_message_bytes, self._metrics)
        with requesting(self._tracing, IN_MEMORY, channel, message):
            return await self._pending.ask(channel, question, timeout, self.publish)

    def _group(self, channel: str, name: str) -> MemoryGroup:
        if (channel, name) not in self._groups:
            self._groups[channel, name] = MemoryGroup(
                f"{name} of {channel}", self._retry_policy, self._start, self._bury, self._count_try(channel)
            )
        return self._groups[channel, name]

    async def _bury(self, letter: DeadLetter) -> None:
        self._dead_letters.append(letter)
        self._metrics.dead_letter(letter.reason.value)
        logger.error(
            "Message %s of %s is a dead letter: %s", letter.message_id, letter.queue, letter.error_message
        )
        # A letter about a message on the channel of letters would come there as well, and fail there again.
        if letter.channel != DLQ and self._connected:
            await self.publish(DLQ, announcement(letter))

    def _count_try(self, channel: str) -> Callable[[bool], None]:
        """Give what counts the messages of a group: those that were too late, and those that a member got."""

        def count(expired: bool) -> None:
            self._counts.expired() if expired else self._counts.delivered(channel)

        return count

    def _start(self, running: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(running)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _require_connected(self, operation: str) -> None:
        if not self._connected:
            raise not_connected(operation)


async def cancel_and_wait(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel `tasks` except the current one and wait for their end, CALLBACK_END_LIMIT seconds at most."""
    others = {task for task in tasks if task is not asyncio.current_task() and not task.done()}
    for task in others:
        task.cancel()
    if not others:
        return
    _, left = await asyncio.wait(others, timeout=CALLBACK_END_LIMIT)
    for task in left:
        logger.error("A callback ignores its cancellation and is left running: %r", task)
