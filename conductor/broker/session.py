"""One connected time of a bus: its threads, subscriptions and counts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conductor.broker.consumer import Consumer
from conductor.broker.groups import Groups
from conductor.broker.intake import LoopIntake
from conductor.broker.message_guard import guard_for
from conductor.broker.origins import Origins
from conductor.broker.publisher import Publisher
from conductor.broker.signing import seals_of
from conductor.broker.subscriptions import Route, RouteTable, Subscription, Tally
from conductor.broker.topology import EVENTS, REPLIES, REPLY_TO_ANY
from conductor.broker.transport import is_rabbitmq, kombu_connection, system_of
from conductor.broker.turn import Turn
from conductor.broker.wire import Address, Receiver, Sender, open_sender, refused, unavailable
from conductor.core.exceptions import MessageBusError
from conductor.core.tracing import find_tracing
from conductor.orchestration.message_bus import Callback, cancel_and_wait
from conductor.orchestration.message_counts import MessageCounts

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

    from conductor.broker.signing import Signer
    from conductor.core.metrics import Metrics
    from conductor.core.retry import RetryPolicy
    from conductor.orchestration.pending import PendingRequests


#: Seconds that one read or write may take before the connection counts as lost.
_IO_TIMEOUT = 5.0
#: Seconds between RabbitMQ's signs of life.
_HEARTBEAT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """See `KombuMessageBus`."""

    url: str
    bus_id: str
    buffer_size: int
    publish_timeout: float
    connect_timeout: float
    max_message_bytes: int
    retry_policy: RetryPolicy
    max_losses: int
    dedup_url: str | None
    visibility_timeout: float
    touch_interval: float
    restore_interval: float
    metrics: Metrics
    signer: Signer | None


class Session:
    """Belongs to the event loop on which it was made; used once."""

    def __init__(self, settings: BusSettings, pending: PendingRequests) -> None:
        self.loop = asyncio.get_running_loop()
        self.tally = Tally()
        self.counts = MessageCounts(settings.metrics)
        self.origins = Origins()
        self.tracing = find_tracing()
        self.system = system_of(settings.url)
        self._settings = settings
        self._routes = RouteTable()
        self._turn = Turn()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._inbox: list[Route] = []
        self._guard = guard_for(
            settings.signer, settings.url, settings.dedup_url, settings.connect_timeout, settings.metrics
        )
        self._intake = LoopIntake(
            settings.bus_id,
            self._routes,
            pending,
            self.origins,
            settings.buffer_size,
            settings.max_message_bytes,
            self.tally,
            self._turn,
            self.tracing,
            self.system,
            settings.metrics,
            self._guard,
        )
        name = f"conductor bus {settings.bus_id[:8]}"
        self.publisher = Publisher(
            f"{name} publisher",
            settings.url,
            self._open_sender,
            settings.publish_timeout,
            seals_of(settings.signer),
        )
        self.groups = Groups(
            settings, self._group_connection, self.publisher, self.origins, self.tracing, self.counts
        )
        self._consumer = Consumer(f"{name} consumer", settings.url, self._open_receiver, self._intake)

    async def open(self) -> None:
        """Connect; raises as `KombuMessageBus.connect`, and leaves nothing behind then."""
        threads = (self._consumer, self.publisher)
        try:
            for thread in threads:
                thread.start()
            connected = {thread.connected for thread in threads}
            await asyncio.wait(
                connected, timeout=self._settings.connect_timeout, return_when=asyncio.FIRST_EXCEPTION
            )
            for outcome in connected:
                if outcome.done():
                    outcome.result()
            if not all(outcome.done() for outcome in connected):
                seconds = self._settings.connect_timeout
                raise unavailable(TimeoutError(f"no answer within {seconds:g} s"), self._settings.url)
        except BaseException:
            self._closed = True
            await self._close_refusals()
            await self._end_threads(limit=1.0)
            raise

    async def close(self) -> None:
        """End everything: what is queued to be published still goes out if the broker is there."""
        self._closed = True
        self._intake.close()
        for route in self._routes:
            self._routes.remove(route)
        # First, so that they end even if this is cancelled: a callback's own task may be what calls it.
        for thread in (self._consumer, self.publisher):
            thread.stop()
        try:
            await cancel_and_wait(self._tasks)
            await self.groups.close()
        finally:
            self.groups.abandon()
            self.counts.flush()
            await self._close_refusals()
        await self._end_threads(limit=_IO_TIMEOUT + self._settings.connect_timeout)

    def abandon(self) -> None:
        """End the threads without waiting, when the event loop is closed."""
        self._closed = True
        self.groups.abandon()
        if self._guard is not None:
            self._guard.refusals.abandon()
        for thread in (self._consumer, self.publisher):
            thread.stop()

    async def subscribe(self, channel: str, callback: Callback, *, in_span: bool = True) -> None:
        """See `MessageBus.subscribe`; without `in_span` the callback is below who published, in no span."""
        route = self._routes.get(EVENTS, channel) or self._add_route(EVENTS, channel)
        added = None
        if route.find(callback) is None:
            added = self._start(channel, callback, in_span=in_span)
            route.subscriptions.append(added)
        try:
            await self._until_live(route, f"Subscribing to {channel}")
        except BaseException:
            if added is not None:
                self._give_up(route, added)
            raise

    async def unsubscribe(self, channel: str) -> None:
        """See `MessageBus.unsubscribe`."""
        route = self._routes.get(EVENTS, channel)
        if route is not None:
            self._remove_route(route)
        await self.groups.unsubscribe(channel)

    @property
    def listens_for_answers(self) -> bool:
        """Whether answers to this bus's requests arrive here."""
        return bool(self._inbox) and all(route.live.is_set() for route in self._inbox)

    async def listen_for_answers(self) -> None:
        """Return when answers to this bus's requests arrive here."""
        if not self._inbox:
            keys = (self._settings.bus_id, REPLY_TO_ANY)
            self._inbox = [self._add_route(REPLIES, key) for key in keys]
        for route in self._inbox:
            await self._until_live(route, "Waiting for the inbox of answers")

    async def _until_live(self, route: Route, what: str) -> None:
        seconds = self._settings.publish_timeout
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            async with asyncio.timeout(seconds):
                await route.live.wait()
        except TimeoutError:
            trouble = self._consumer.trouble or "The broker does not confirm it."
            raise MessageBusError(
                f"{what} gave up after {seconds:g} s. {trouble}", "BROKER_UNAVAILABLE", {"reason": trouble}
            ) from None
        if route.address.refusal is not None:
            raise refused(route.address.refusal, what, route.address.key)
        if self._closed:
            raise MessageBusError(f"{what} ended: the bus was disconnected.", "BUS_DISCONNECTED")

    def _add_route(self, exchange: str, key: str) -> Route:
        route = self._routes.add(exchange, key)
        self._consumer.add(route.address)
        return route

    def _remove_route(self, route: Route) -> None:
        self._routes.remove(route)
        self._consumer.drop(route.address)

    def _give_up(self, route: Route, subscription: Subscription) -> None:
        subscription.close()
        route.subscriptions.remove(subscription)
        if not route.subscriptions and self._routes.get(route.address.exchange, route.address.key) is route:
            self._remove_route(route)

    def _start(self, channel: str, callback: Callback, *, in_span: bool) -> Subscription:
        limit = self._settings.buffer_size
        subscription = Subscription(
            channel, callback, limit, self.tally, self._turn, self.counts, in_span=in_span
        )
        self._tasks.add(subscription.task)
        subscription.task.add_done_callback(self._tasks.discard)
        return subscription

    async def _end_threads(self, limit: float) -> None:
        threads = [thread for thread in (self._consumer, self.publisher) if thread.is_alive()]
        for thread in threads:
            thread.stop()
        if threads:
            await asyncio.wait({thread.ended for thread in threads}, timeout=limit)
        for thread in threads:
            if thread.ended.done():
                thread.join(0.1)  # it has nothing left to do but to return

    async def _close_refusals(self) -> None:
        if self._guard is not None:
            await self._guard.refusals.close()

    def _group_connection(self) -> Connection:
        return self._connection(_HEARTBEAT, confirm_publish=True)

    def _connection(self, heartbeat: float = 0, *, confirm_publish: bool = False) -> Connection:
        limit = self._settings.connect_timeout
        # The handshake consists of reads and writes as well, and must not take longer than connecting may.
        return kombu_connection(
            self._settings.url,
            connect_timeout=limit,
            io_timeout=min(_IO_TIMEOUT, limit),
            heartbeat=heartbeat,
            confirm_publish=confirm_publish,
        )

    def _open_sender(self) -> Sender:
        return open_sender(self._connection(), self._settings.url)

    def _open_receiver(self, confirmed: Callable[[Address], None]) -> Receiver:
        connection = self._connection(_HEARTBEAT)
        if is_rabbitmq(self._settings.url):
            from conductor.broker.wire_amqp import AmqpReceiver

            return AmqpReceiver(connection, confirmed)
        from conductor.broker.wire_redis import RedisReceiver

        return RedisReceiver(connection, confirmed)
