"""What a bus is subscribed to, and the tasks that call the callbacks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from conductor.broker.wire import Address
from conductor.orchestration.message_bus import Callback, run_callback
from conductor.orchestration.message_spans import processing, run_in_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conductor.broker.turn import Turn
    from conductor.broker.wire import Incoming
    from conductor.core.messages import AgentMessage
    from conductor.core.tracing import Tracing
    from conductor.orchestration.message_counts import MessageCounts

logger = logging.getLogger(__name__)

#: Seconds between two log lines about the same overflow.
_LOG_INTERVAL = 5.0


@dataclass(slots=True)
class Tally:
    """What a bus lost since it was connected."""

    dropped: int = 0
    invalid: int = 0
    refused: int = 0


class Overflow:
    """Counts what a full buffer could not take, and says so in the log, but not for every message."""

    def __init__(self, what: str, limit: int, tally: Tally, count: Callable[[int], None]) -> None:
        self._what = what
        self._hand_on = count
        self._limit = limit
        self._tally = tally
        self._count = 0
        self._log_again = 0.0

    def add(self, number: int = 1) -> None:
        """Count `number` more; may be called from any thread."""
        self._count += number
        self._tally.dropped += number
        self._hand_on(number)
        now = time.monotonic()
        if now >= self._log_again:
            self._log_again = now + _LOG_INTERVAL
            logger.warning(
                "The buffer of %s is full (%d messages); %d dropped so far",
                self._what,
                self._limit,
                self._count,
            )


@dataclass(frozen=True, slots=True)
class Traced:
    """A message on its way to a callback, where there is tracing."""

    message: AgentMessage
    incoming: Incoming
    tracing: Tracing
    system: str


class Subscription:
    """One callback of one channel or pattern: a bounded buffer and a task that empties it, in order."""

    def __init__(
        self,
        channel: str,
        callback: Callback,
        buffer_size: int,
        tally: Tally,
        turn: Turn,
        counts: MessageCounts,
        *,
        in_span: bool = True,
    ) -> None:
        self.callback = callback
        self.task: asyncio.Task[None] = asyncio.ensure_future(self._run())
        self.task.set_name(f"conductor subscription {channel}")
        self._overflow = Overflow(f"a subscription to {channel}", buffer_size, tally, counts.dropped)
        self._counts = counts
        self._channel = channel
        self._limit = buffer_size
        self._buffer: deque[AgentMessage | Traced] = deque()
        self._in_span = in_span
        self._turn = turn
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, message: AgentMessage | Traced) -> None:
        """Have the callback called with `message`, unless the buffer is full."""
        if len(self._buffer) >= self._limit:
            self._overflow.add()
            return
        self._buffer.append(message)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def close(self) -> None:
        """Forget what is waiting; the task ends when a running callback has."""
        self._closed = True
        self._buffer.clear()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _run(self) -> None:
        while not self._closed:
            if not self._buffer:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
                continue
            message = self._buffer.popleft()
            if isinstance(message, Traced):
                await self._call_traced(message)
            elif message.is_expired():
                self._counts.expired()
            else:
                self._counts.delivered(self._channel)
                await self._call(message)
            if self._turn.is_over():
                await asyncio.sleep(0)

    async def _call_traced(self, traced: Traced) -> None:
        """Call the callback in a span of its own, or directly below who published."""
        message, incoming, tracing = traced.message, traced.incoming, traced.tracing
        if message.is_expired():
            self._counts.expired()
            return
        self._counts.delivered(self._channel)
        if not self._in_span:
            with tracing.below(incoming.headers):
                await self._call(message)
            return
        span = processing(tracing, traced.system, incoming.channel, message, incoming.headers)
        await run_in_span(span, partial(self._call, message))

    async def _call(self, message: AgentMessage) -> Exception | None:
        try:
            return await run_callback(self.callback, self._channel, message)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The callback awaited something that somebody cancelled; that is a failure like any other.
            logger.warning(
                "Callback of channel %s was cancelled on message %s", self._channel, message.message_id
            )
            return None


class Route:
    """The subscriptions of one bus to one channel or pattern, or its inbox for answers."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.live = asyncio.Event()
        """Set while the broker has the subscription."""
        self.subscriptions: list[Subscription] = []

    def find(self, callback: Callback) -> Subscription | None:
        """The subscription of `callback`, if there is one."""
        return next((known for known in self.subscriptions if known.callback == callback), None)


class RouteTable:
    """All routes of a bus; lives on its event loop."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str], Route] = {}
        self._by_address: dict[Address, Route] = {}

    def __iter__(self) -> Iterator[Route]:
        return iter(list(self._by_key.values()))

    def get(self, exchange: str, key: str) -> Route | None:
        """The route to `key`, if there is one."""
        return self._by_key.get((exchange, key))

    def of(self, address: Address) -> Route | None:
        """The route that a message came by; None when it has been removed meanwhile."""
        return self._by_address.get(address)

    def add(self, exchange: str, key: str) -> Route:
        """Make a route to `key`."""
        route = Route(Address(exchange, key))
        self._by_key[exchange, key] = self._by_address[route.address] = route
        return route

    def remove(self, route: Route) -> None:
        """Forget a route and close its subscriptions."""
        self._by_key.pop((route.address.exchange, route.address.key), None)
        self._by_address.pop(route.address, None)
        route.live.set()  # who waits for it need not wait any longer
        for subscription in route.subscriptions:
            subscription.close()
