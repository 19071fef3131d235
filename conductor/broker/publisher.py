"""The thread that publishes."""

from __future__ import annotations

import contextlib
import queue
import uuid
from collections import deque
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from conductor.broker.link_thread import LinkThread
from conductor.broker.wire import Outgoing, Sender, missing_right, refused, seal
from conductor.core.exceptions import MessageBusError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from conductor.broker.signing import Seals

#: Messages after which a round of the event loop hands over what it has published so far.
_HANDOVER = 128
#: Bytes of bodies in one batch, beyond which it takes no further message.
_BATCH_BYTES = 512 * 1024


class Publisher(LinkThread[Sender]):
    """Takes all that waits, sends it as one batch and completes all futures in one call to the loop.

    A message on its own goes at once. Messages whose confirmation is missing when a connection is lost are
    sent again over the next one, so while a broker fails a message may arrive twice, but never unnoticed not
    at all. The order of the calls is kept.
    """

    def __init__(
        self,
        name: str,
        url: str,
        open_link: Callable[[], Sender],
        publish_timeout: float,
        seals: Seals | None = None,
    ) -> None:
        """`seals`, where there are any, belong to the loop."""
        super().__init__(name, url, open_link)
        self._seals = seals
        self._publish_timeout = publish_timeout
        self._gathered: list[Outgoing] = []
        self._queue: queue.SimpleQueue[list[Outgoing]] = queue.SimpleQueue()
        self._unsent: deque[Outgoing] = deque()
        self._unconfirmed: list[Outgoing] = []
        self._outstanding: deque[Outgoing] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._tag_prefix = uuid.uuid4().hex
        self._count = 0

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        reply_to: str | None = None,
        correlation_id: str | None = None,
        answer_by: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> asyncio.Future[None]:
        """Queue a message; the future is done when the broker has it. Belongs to the loop.

        MessageBusError: BROKER_UNAVAILABLE after `publish_timeout` seconds, BROKER_REFUSED, BUS_DISCONNECTED.
        """
        self._count += 1
        out = Outgoing(
            exchange,
            routing_key,
            body,
            self._loop.create_future(),
            self._loop.time() + self._publish_timeout,
            reply_to,
            correlation_id,
            answer_by,
            f"{self._tag_prefix}-{self._count}",
            headers,
        )
        if self._seals is not None:  # asked here: a call more for each message is not free
            seal(out, self._seals)
        self._outstanding.append(out)
        if self._watch is None:
            self._watch = self._loop.call_at(out.deadline, self._expire)
        self._gathered.append(out)
        if len(self._gathered) == 1:
            self._loop.call_soon(self._hand_over)
        elif len(self._gathered) >= _HANDOVER:
            self._hand_over()
        return out.future

    def _hand_over(self) -> None:
        """Wake the thread once for a round of the loop; doing it for each message costs more than sending."""
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    def _wake(self) -> None:
        self._hand_over()
        self._queue.put([])

    def _serve(self, link: Sender) -> None:
        while True:
            batch = self._unconfirmed or self._take(link.batch_size)
            if not batch:
                return
            self._unconfirmed = batch = [out for out in batch if not out.future.done()]
            try:
                link.send(batch)
            except BaseException as error:
                _refuse(batch, error)
                self._unconfirmed = [out for out in batch if not out.confirmed]
                batch = [out for out in batch if out.confirmed]
                raise
            else:
                self._unconfirmed = []
            finally:
                self._post(self._complete, batch)

    def _take(self, limit: int) -> list[Outgoing]:
        """Wait for messages and take what may be sent at once; none means to stop."""
        unsent = self._unsent
        if not unsent:
            unsent.extend(self._queue.get())
        with contextlib.suppress(queue.Empty):
            while len(unsent) < limit and (more := self._queue.get_nowait()):
                unsent.extend(more)
            if len(unsent) < limit and unsent:
                self._queue.put([])  # the word to stop, for the next call
        batch: list[Outgoing] = []
        size = 0
        while unsent and len(batch) < limit and size < _BATCH_BYTES:
            out = unsent.popleft()
            batch.append(out)
            size += len(out.body)
        return batch

    def _complete(self, batch: list[Outgoing]) -> None:
        for out in batch:
            if out.future.done():
                continue
            if out.error is None:
                out.future.set_result(None)
            else:
                error = refused(out.error, f"Publishing to {out.routing_key}", out.routing_key)
                error.details["routing_key"] = out.routing_key
                out.future.set_exception(error)
        while self._outstanding and self._outstanding[0].future.done():
            self._outstanding.popleft()

    def _expire(self) -> None:
        """Give up what waited too long; runs on the loop when the oldest publish may be due."""
        self._watch = None
        now = self._loop.time()
        while self._outstanding:
            out = self._outstanding[0]
            if out.deadline > now and not out.future.done():
                self._watch = self._loop.call_at(out.deadline, self._expire)
                return
            self._outstanding.popleft()
            if not out.future.done():
                out.future.set_exception(self._unavailable(out))

    def _unavailable(self, out: Outgoing) -> MessageBusError:
        trouble = self.trouble or "The broker does not confirm what it is sent."
        return MessageBusError(
            f"Publishing gave up after {self._publish_timeout:g} s. {trouble}",
            "BROKER_UNAVAILABLE",
            {"routing_key": out.routing_key, "publish_timeout": self._publish_timeout, "reason": trouble},
        )

    def _tidy(self) -> None:
        """Forget what its callers gave up, or a long outage would fill the memory."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._unsent.extend(self._queue.get_nowait())  # the word to stop is not needed here
        self._unsent = deque(out for out in self._unsent if not out.future.done())
        self._unconfirmed = [out for out in self._unconfirmed if not out.future.done()]

    def _on_end(self) -> None:
        self._post(self._abandon)

    def _abandon(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for out in self._outstanding:
            if not out.future.done():
                out.future.set_exception(
                    MessageBusError(
                        "The bus was disconnected before the broker had the message.", "BUS_DISCONNECTED"
                    )
                )
        self._outstanding.clear()


def _refuse(batch: list[Outgoing], error: BaseException) -> None:
    """Give up what a connection was lost by, for want of a right."""
    if not isinstance(error, Exception) or missing_right(error) is None:
        return
    for out in batch:
        # RabbitMQ names the exchange.
        if not out.confirmed and (isinstance(error, ResponseError) or f"'{out.exchange}'" in str(error)):
            out.confirmed, out.error = True, error
