"""Groups on RabbitMQ: a durable queue, acknowledged message by message.

RabbitMQ says that a message was delivered before, not how often, and not whether it ended its consumer. So a
member that gets such a message first puts it back with one more loss noted, and then acknowledges it.
"""

from __future__ import annotations

import logging
import select
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING

from amqp.exceptions import RecoverableConnectionError

from conductor.broker.dead_letters import PERSISTENT, publish_dead_letter
from conductor.broker.group_link import Delivery, Member
from conductor.broker.topology import AMQP, EVENTS, channel_of, group_queue, retry_queue
from conductor.broker.wire_amqp import AmqpLink

if TYPE_CHECKING:
    import amqp
    from kombu import Connection

    from conductor.broker.group_seen import SeenMessages
    from conductor.core.dead_letters import DeadLetter
    from conductor.orchestration.groups import Trial

logger = logging.getLogger(__name__)

#: Seconds between looks whether a silent broker is still there.
_CHECK_INTERVAL = 5.0


class AmqpGroupLink(AmqpLink):
    """See `GroupLink`. What it delivered goes back by itself when the connection is lost."""

    keeps_deliveries = False

    def __init__(
        self, connection: Connection, seen: SeenMessages | None, *, keep_after: float, keep_interval: float
    ) -> None:
        """What a member has for `keep_after` seconds it has without limit; see `Channel.keep`."""
        super().__init__(connection)
        self.seen = seen
        self._keep_after = keep_after
        self._keep_interval = keep_interval
        self._keep_at = 0.0
        # What it holds may be in a transaction, and transactions and confirmations exclude each other.
        self._holding = connection.channel()
        self._holding.basic_qos(0, 1, False)  # noqa: FBT003  one message for each consumer
        self._producer = connection.Producer(self._channel)
        self._inbox: list[Delivery] = []
        self._members: dict[str, Member] = {}
        self._cancelled: list[str] = []
        self._check_at = 0.0
        self._poll = select.poll()
        self._poll.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """See `GroupLink.fileno`."""
        number: int = self._kombu.connection.sock.fileno()
        return number

    def join(self, member: Member) -> None:
        """See `GroupLink.join`."""
        if member.window is not None and self.seen is not None:
            # Before anything is delivered that could not be looked up.
            self.seen.check()
        queue = group_queue(member.group, member.pattern)
        queue(self._channel).declare()
        self._members[member.tag] = member
        take = partial(self._take, member)
        queue(self._holding).consume(
            consumer_tag=member.tag, callback=take, no_ack=False, on_cancel=self._cancelled.append
        )

    def leave(self, member: Member) -> None:
        """See `GroupLink.leave`."""
        if self._members.pop(member.tag, None) is not None:
            self._holding.basic_cancel(member.tag)

    def receive(self) -> list[Delivery]:
        """See `GroupLink.receive`."""
        while self._readable(self._poll):
            # Not drain_events: it goes on to wait after a heartbeat.
            self._kombu.connection.blocking_read()
        if not (self._channel.is_open and self._holding.is_open):
            raise RecoverableConnectionError("the broker closed the channel")
        self._forget_cancelled()
        received, self._inbox = self._inbox, []
        return received

    def tend(self) -> float:
        """See `GroupLink.tend`."""
        now = time.monotonic()
        if now >= self._check_at:
            self._kombu.heartbeat_check(rate=2)
            self._check_at = now + _CHECK_INTERVAL
        if now >= self._keep_at:
            self._holding.keep(self._keep_after)
            self._keep_at = now + self._keep_interval
        # Waiting for an answer may have brought a delivery, of which the socket tells nothing more.
        return 0.0 if self._inbox or self._cancelled else min(self._check_at, self._keep_at) - now

    def done(self, delivery: Delivery) -> None:
        """See `GroupLink.done`."""
        self._holding.basic_ack(delivery.receipt)

    def later(self, delivery: Delivery, trial: Trial, seconds: float) -> None:
        """See `GroupLink.later`."""
        milliseconds = _rounded(seconds)
        if milliseconds == 0:
            self.give_back(delivery, trial)
            return
        queue = retry_queue(delivery.member.queue, milliseconds)
        queue(self._channel).declare()  # each time: an unused one vanishes
        self._publish(delivery, trial, queue.name)
        self.done(delivery)

    def give_back(self, delivery: Delivery, trial: Trial) -> None:
        """See `GroupLink.give_back`; the message goes to the end of the queue."""
        self._publish(delivery, trial, delivery.member.queue)
        self.done(delivery)

    def note(self, delivery: Delivery, trial: Trial) -> bool:
        """See `GroupLink.note`."""
        self.give_back(delivery, trial)
        return False

    def bury(self, delivery: Delivery, letter: DeadLetter) -> None:
        """See `GroupLink.bury`."""
        publish_dead_letter(self._producer, letter)
        self.done(delivery)

    def close(self) -> None:
        """See `GroupLink.close`."""
        super().close()
        if self.seen is not None:
            self.seen.close()

    def delete(self, queue: str) -> None:
        """See `GroupLink.delete`."""
        self._channel.queue_delete(queue)

    def _publish(self, delivery: Delivery, trial: Trial, queue: str) -> None:
        kept = ("content_type", "content_encoding", "message_id", "correlation_id", "reply_to")
        properties = {name: delivery.properties[name] for name in kept if name in delivery.properties}
        properties.setdefault("message_id", delivery.identity)
        self._producer.publish(
            delivery.body,
            exchange="",
            routing_key=queue,
            headers=delivery.headers_for(trial),
            delivery_mode=PERSISTENT,
            **{"content_type": "application/json", "content_encoding": "utf-8"} | properties,
        )

    def _take(self, member: Member, message: amqp.Message) -> None:
        info, properties = message.delivery_info, message.properties
        published = info["exchange"] == EVENTS
        self._inbox.append(
            Delivery(
                member=member,
                receipt=info["delivery_tag"],
                body=message.body,
                headers=dict(properties.get("application_headers") or {}),
                properties=properties,
                identity=properties.get("message_id") or uuid.uuid4().hex,
                channel=channel_of(AMQP, info["routing_key"]) if published else None,
                published=published,
                lost=bool(info["redelivered"]),
            )
        )

    def _forget_cancelled(self) -> None:
        while self._cancelled:
            member = self._members.pop(self._cancelled.pop(), None)
            if member is not None:
                member.left = True
                logger.error("Queue %s was deleted; its member here receives nothing more", member.queue)


def _rounded(seconds: float) -> int:
    """Give milliseconds with two significant digits, rounded down: there is a queue for each delay."""
    milliseconds = int(seconds * 1000)
    unit: int = 10 ** max(0, len(str(milliseconds)) - 2)
    return milliseconds // unit * unit
