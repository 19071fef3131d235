"""kombu on a fanout exchange: one thread publishes, one consumes; more threads only wait for each other."""

import asyncio
import threading
from contextlib import nullcontext

from kombu import Connection, Consumer, Exchange, Message, Producer, Queue

from benchmarks.load import make_message
from benchmarks.peers.base import BusPeer, Handler
from conductor.core.messages import AgentMessage

BATCH = 100
_POLL_SECONDS = 0.2


class KombuPeer(BusPeer):
    """Each publish is a round trip of its own."""

    batch: int | None = None

    async def open(self) -> None:
        """Connect."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection = Connection(self.url)
        self._producer: Producer | None = None

    async def close(self) -> None:
        """End the consuming thread and the connection."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._connection.release()

    async def subscribe(self, channel: str, handler: Handler) -> None:
        """Consume in a thread."""
        self._thread = threading.Thread(target=self._consume, args=(channel, handler))
        self._thread.start()

    async def publish(self, channel: str, message: AgentMessage) -> None:
        """Publish one message, in a thread."""
        await asyncio.to_thread(self._publish, channel, message)

    async def publish_many(self, channel: str, count: int, width: int) -> None:
        """Publish all in one thread."""
        await asyncio.to_thread(self._publish_many, channel, count)

    def _publish_many(self, channel: str, count: int) -> None:
        producer = self._producer_of(channel)
        with producer.batch(max_size=self.batch) if self.batch else nullcontext():
            for number in range(count):
                self._publish(channel, make_message(number))

    def _publish(self, channel: str, message: AgentMessage) -> None:
        self._producer_of(channel).publish(
            message.model_dump_json(), content_type="application/json", content_encoding="utf-8"
        )

    def _producer_of(self, channel: str) -> Producer:
        if self._producer is None:
            exchange = Exchange(channel, type="fanout", delivery_mode="transient")
            # auto_declare: undeclared, the exchange would be taken for a direct one.
            self._producer = Producer(self._connection.channel(), exchange=exchange, auto_declare=True)
        return self._producer

    def _consume(self, channel: str, handler: Handler) -> None:
        queue = Queue(
            f"{channel}.subscriber",
            Exchange(channel, type="fanout", delivery_mode="transient"),
            exclusive=True,
            auto_delete=True,
        )

        def receive(message: Message) -> None:
            handler(AgentMessage.model_validate_json(message.body))

        with Consumer(self._connection, [queue], on_message=receive, no_ack=True, accept=["json"]):
            while not self._stopping.is_set():
                try:
                    self._connection.drain_events(timeout=_POLL_SECONDS)
                except TimeoutError:
                    continue


class KombuBatchPeer(KombuPeer):
    """`Producer.batch` sends BATCH messages as one pipeline."""

    batch = BATCH
