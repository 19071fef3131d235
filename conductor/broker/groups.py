"""A bus's part in groups: its members, the thread that serves them, the tasks that call them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TYPE_CHECKING

from conductor.broker.group_link import Delivery, GroupLink, Member
from conductor.broker.group_seen import open_seen
from conductor.broker.group_thread import GroupThread
from conductor.broker.topology import DEADLINE_HEADER, EVENTS, group_queue_name
from conductor.broker.transport import is_rabbitmq, system_of
from conductor.core.channels import DLQ
from conductor.core.dead_letters import DeadLetterReason, announcement
from conductor.core.exceptions import MessageBusError
from conductor.core.log_ids import current_message
from conductor.core.metrics import refused_as
from conductor.orchestration.groups import delivered_copy
from conductor.orchestration.message_bus import Callback, cancel_and_wait, encode_message
from conductor.orchestration.message_spans import processing

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

    from conductor.broker.origins import Origins
    from conductor.broker.publisher import Publisher
    from conductor.broker.session import BusSettings
    from conductor.core.dead_letters import DeadLetter
    from conductor.core.tracing import Tracing
    from conductor.orchestration.message_counts import MessageCounts

logger = logging.getLogger(__name__)

#: Seconds that the thread has to give back what members had when the bus disconnects.
_END_LIMIT = 10.0
#: Seconds between attempts to reach a broker that is away.
_PAUSE = 0.2


class Groups:
    """Belongs to the event loop; the thread and its connection exist from the first member on."""

    def __init__(
        self,
        settings: BusSettings,
        connect: Callable[..., Connection],
        publisher: Publisher,
        origins: Origins,
        tracing: Tracing | None,
        counts: MessageCounts,
    ) -> None:
        self._counts = counts
        self._settings = settings
        self._tracing = tracing
        self._system = system_of(settings.url)
        self._connect = connect
        self._publisher = publisher
        self._origins = origins
        self._members: list[Member] = []
        self._thread: GroupThread | None = None
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims: dict[str, Member] = {}
        self._closed = False

    async def subscribe(self, channel: str, callback: Callback, group: str, window: float | None) -> None:
        """See `MessageBus.subscribe`; MessageBusError, BROKER_UNAVAILABLE or DEDUPLICATION_UNAVAILABLE."""
        if window is not None:
            self._require_store("`deduplicate`")
        if self._settings.signer is not None:
            self._require_store("`signing`")
        queue = group_queue_name(group, channel)
        if any(known.queue == queue and known.callback == callback for known in self._members):
            return
        member = Member(group, channel, queue, callback, window, uuid.uuid4().hex, asyncio.Lock())
        self._members.append(member)
        try:
            await self._in_time(lambda thread: thread.admit(member), f"Joining group {group} of {channel}")
        except BaseException:
            self._leave(member)
            raise

    async def unsubscribe(self, channel: str) -> None:
        """See `MessageBus.unsubscribe`; returns when these members are given nothing more."""
        await self._dismiss([known for known in self._members if known.pattern == channel])

    async def delete(self, channel: str, group: str) -> None:
        """See `MessageBus.delete_group`; MessageBusError, code BROKER_UNAVAILABLE."""
        queue = group_queue_name(group, channel)
        await self._dismiss([known for known in self._members if known.queue == queue])
        await self._in_time(lambda thread: thread.delete(queue), f"Deleting group {group} of {channel}")

    async def close(self) -> None:
        """Cancel the callbacks, and have what they had given back."""
        self._closed = True
        try:
            await cancel_and_wait(self._tasks)
        finally:
            self.abandon()
        if self._thread is not None:
            await asyncio.wait({self._thread.ended}, timeout=_END_LIMIT)

    def abandon(self) -> None:
        """Have the thread give back what members have, and end; not waited for."""
        self._closed = True
        if self._thread is not None:
            self._thread.stop()

    def begin(self, delivery: Delivery) -> None:
        """See `Office.begin`."""
        if self._closed:
            return
        task = asyncio.ensure_future(self._run(delivery))
        task.set_name(f"conductor group {delivery.member.group}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def expired(self) -> None:
        """See `Office.expired`."""
        self._counts.expired()

    def buried(self, letter: DeadLetter) -> None:
        """See `Office.buried`."""
        if letter.reason is DeadLetterReason.REFUSED:
            self._counts.metrics.message_refused(refused_as(letter.error_code))
        self._counts.metrics.dead_letter(letter.reason.value)
        # A letter about a message on the channel of letters would come there as well, and fail there again.
        if not self._closed and letter.channel != DLQ:
            body = encode_message(announcement(letter))
            self._publisher.publish(EVENTS, DLQ, body).add_done_callback(_log_failure)

    async def _run(self, delivery: Delivery) -> None:
        error: BaseException | None = None
        async with delivery.member.turn:
            try:
                await self._call(delivery)
            except asyncio.CancelledError as cancelled:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # the thread gives back what nothing is reported of
                error = cancelled
            except Exception as raised:  # noqa: BLE001  the thread files it
                error = raised
            except BaseException as raised:
                self._report(delivery, raised)
                raise
            self._report(delivery, error)

    async def _call(self, delivery: Delivery) -> None:
        message = delivered_copy(delivery.body, delivery.trial)
        inbox = delivery.properties.get("reply_to")
        if inbox is not None and inbox != self._settings.bus_id:
            asked = message.correlation_id or message.message_id
            self._origins.remember(asked, inbox, delivery.headers.get(DEADLINE_HEADER))
        current_message.set(message)  # for the rest of this task, which is about it
        self._counts.delivered(delivery.member.pattern)
        channel = delivery.channel or delivery.member.pattern
        with processing(self._tracing, self._system, channel, message, delivery.headers):
            await delivery.member.callback(message)

    def _report(self, delivery: Delivery, error: BaseException | None) -> None:
        if self._thread is not None:
            self._thread.report(delivery, error)

    async def _dismiss(self, members: list[Member]) -> None:
        told = [future for member in members if (future := self._leave(member)) is not None]
        if told and self._thread is not None and self._thread.trouble is None:
            await asyncio.wait(told, timeout=self._settings.publish_timeout)

    def _leave(self, member: Member) -> asyncio.Future[None] | None:
        self._members.remove(member)
        member.left = True
        if self._thread is None or self._thread.ended.done():
            return None
        return self._thread.dismiss(member)

    async def _in_time(self, ask: Callable[[GroupThread], asyncio.Future[None]], what: str) -> None:
        """Wait for the thread to do something, BROKER_UNAVAILABLE after `publish_timeout` seconds."""
        seconds = self._settings.publish_timeout
        try:
            async with asyncio.timeout(seconds):
                await ask(await self._running())
        except TimeoutError:
            trouble = self._thread.trouble if self._thread is not None else None
            trouble = trouble or "The broker does not confirm it."
            raise MessageBusError(
                f"{what} gave up after {seconds:g} s. {trouble}", "BROKER_UNAVAILABLE", {"reason": trouble}
            ) from None

    async def _running(self) -> GroupThread:
        """Give the thread, connected; while the broker is away this tries again without end."""
        async with self._starting:
            while True:
                thread = self._thread
                if thread is None or thread.ended.done():
                    thread = self._thread = self._start()
                try:
                    await asyncio.shield(thread.connected)
                except MessageBusError as error:
                    if error.error_code != "BROKER_UNAVAILABLE":
                        raise
                else:
                    return thread
                await asyncio.sleep(_PAUSE)

    def _start(self) -> GroupThread:
        settings = self._settings
        name = f"conductor bus {settings.bus_id[:8]} groups"
        thread = GroupThread(
            name,
            settings.url,
            self._open_link,
            self,
            settings.retry_policy,
            settings.max_losses,
            settings.max_message_bytes,
            settings.signer,
        )
        thread.start()
        return thread

    def _require_store(self, what: str) -> None:
        if is_rabbitmq(self._settings.url) and self._settings.dedup_url is None:
            raise MessageBusError(
                f"RabbitMQ cannot note which messages a group had: {what} needs a Redis. Give the bus "
                "`dedup_url`, for example KombuMessageBus(url, dedup_url='redis://localhost:6379/0'), or use "
                "the bus of a Conductor, which has one.",
                "DEDUPLICATION_UNAVAILABLE",
            )

    def _open_link(self) -> GroupLink:
        """Connect; runs in the thread."""
        settings = self._settings
        if is_rabbitmq(settings.url):
            from conductor.broker.group_amqp import AmqpGroupLink

            seen = None if settings.dedup_url is None else open_seen(settings.dedup_url)
            return AmqpGroupLink(
                self._connect(),
                seen,
                keep_after=settings.visibility_timeout,
                keep_interval=settings.touch_interval,
            )
        from conductor.broker.group_redis import RedisGroupLink

        return RedisGroupLink(
            self._connect(),
            self._claims,
            visibility_timeout=settings.visibility_timeout,
            touch_interval=settings.touch_interval,
            restore_interval=settings.restore_interval,
        )


def _log_failure(publishing: asyncio.Future[None]) -> None:
    if not publishing.cancelled() and (error := publishing.exception()) is not None:
        logger.warning("A dead letter could not be announced on %s: %s", DLQ, error)
