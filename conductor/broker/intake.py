"""The way of a message from the consumer's thread to the subscriptions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from conductor.broker.plain_message import DAMAGE
from conductor.broker.subscriptions import Overflow, Route, RouteTable, Tally, Traced
from conductor.core.channels import compile_pattern
from conductor.core.exceptions import MessageBusError
from conductor.core.log_ids import bound_ids, message_ids
from conductor.core.message_size import bytes_in, check_size, most_on_the_wire, too_large
from conductor.core.messages import AgentMessage
from conductor.core.metrics import refused_as

if TYPE_CHECKING:
    from conductor.broker.message_guard import MessageGuard
    from conductor.broker.origins import Origins
    from conductor.broker.turn import Turn
    from conductor.broker.wire import Address, Incoming, Raw, Receiver
    from conductor.core.metrics import Metrics
    from conductor.core.tracing import Tracing
    from conductor.orchestration.pending import PendingRequests

logger = logging.getLogger(__name__)


class LoopIntake:
    """Reads and validates on the loop, a slice at a time.

    The thread only moves bytes: two threads that both compute wait for each other's 5 ms of the interpreter
    lock, and the loop would be the one to wait.
    """

    def __init__(
        self,
        own_inbox: str,
        routes: RouteTable,
        pending: PendingRequests,
        origins: Origins,
        limit: int,
        max_message_bytes: int,
        tally: Tally,
        turn: Turn,
        tracing: Tracing | None,
        system: str,
        metrics: Metrics,
        guard: MessageGuard | None,
    ) -> None:
        self._guard = guard
        self._metrics = metrics
        self._turn = turn
        self._tracing = tracing
        self._system = system
        self._tally = tally
        self._overflow = Overflow(
            "messages that the event loop had no time for",
            limit,
            tally,
            partial(metrics.messages_dropped, "buffer_full"),
        )
        self._own_inbox = own_inbox
        self._routes = routes
        self._pending = pending
        self._origins = origins
        self._limit = limit
        self._max_message_bytes = max_message_bytes
        self._waiting: deque[tuple[Raw, Receiver, float]] = deque()
        self._scheduled = False
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def put(self, chunk: list[Raw], receiver: Receiver) -> bool:
        """See `Intake.put`."""
        room = self._limit - len(self._waiting)
        if len(chunk) > room:
            self._overflow.add(len(chunk) - max(room, 0))
            chunk = chunk[: max(room, 0)]
        # How long a message was under way must not depend on how busy the loop is.
        now = 0.0 if self._guard is None else time.time()
        self._waiting.extend([(raw, receiver, now) for raw in chunk])
        if self._scheduled:
            return False
        self._scheduled = True
        return True

    def work(self) -> None:
        """See `Intake.work`."""
        waiting = self._waiting
        while not self._closed:
            if not waiting:
                self._scheduled = False
                if not waiting:  # else the thread put something in between and counts on us
                    return
                self._scheduled = True
            raw, receiver, received_at = waiting.popleft()
            route = self._routes.of(raw[0])
            if route is not None:
                self._handle(route, raw, receiver, received_at)
            if self._turn.is_over():
                self._loop.call_soon(self.work)
                return

    def live(self, address: Address) -> None:
        """See `Intake.live`."""
        route = self._routes.of(address)
        if route is not None:
            route.live.set()

    def lost(self) -> None:
        """See `Intake.lost`."""
        for route in self._routes:
            route.live.clear()

    def close(self) -> None:
        """Forget everything that waits."""
        self._closed = True
        self._waiting.clear()

    def _handle(self, route: Route, raw: Raw, receiver: Receiver, received_at: float) -> None:
        incoming = None
        try:
            self._check_whole(receiver.size(raw))
            incoming = receiver.decode(raw)
            if route.address.over_delivers and not _wanted(route, incoming):
                return
            self._check_body(incoming.body)
            if self._guard is not None:
                self._guard.check(route.address, incoming, received_at)
            message = AgentMessage.model_validate_json(incoming.body)
        except MessageBusError as error:
            self._tally.refused += 1
            self._metrics.message_refused(refused_as(error.error_code))
            with bound_ids({} if incoming is None else message_ids(incoming.body)):
                logger.warning("What came on %s is dropped: %s", receiver.channel(raw), error)
            return
        except DAMAGE as error:
            with bound_ids({} if incoming is None else message_ids(incoming.body)):
                self._refuse(receiver.channel(raw), error)
            return
        if incoming.reply_to is not None and incoming.reply_to != self._own_inbox:
            self._origins.remember(
                incoming.correlation_id or message.message_id, incoming.reply_to, incoming.answer_by
            )
        if message.correlation_id is not None:
            self._pending.resolve(message)
        first = True
        for subscription in route.subscriptions:
            each = message if first else AgentMessage.model_validate_json(incoming.body)
            first = False
            if self._tracing is None:
                subscription.put(each)
            else:
                subscription.put(Traced(each, incoming, self._tracing, self._system))

    def _check_whole(self, size: int) -> None:
        """Refuse what cannot be a message before it is read: that alone would take long."""
        if size > most_on_the_wire(self._max_message_bytes):
            raise too_large("A message", size, self._max_message_bytes)

    def _check_body(self, body: str | bytes) -> None:
        check_size("A message", bytes_in(body), self._max_message_bytes)

    def _refuse(self, channel: str, error: Exception) -> None:
        self._tally.invalid += 1
        self._metrics.messages_dropped("invalid")
        logger.warning("What came on %s is no AgentMessage and is dropped: %s", channel, str(error)[:500])


def _wanted(route: Route, incoming: Incoming) -> bool:
    return compile_pattern(route.address.key)(incoming.channel)
