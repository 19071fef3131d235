"""Sending Celery tasks from an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from conductor.broker.amqp_transport import WrongQueueTypeError
from conductor.broker.transport import connect, disconnect
from conductor.broker.wire import missing_right
from conductor.core.exceptions import MessageBusError
from conductor.core.tls import explain_tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

    from conductor.broker.app import ConductorApp

logger = logging.getLogger(__name__)

#: Messages that go out as one batch, at most.
BATCH = 200


@dataclass(frozen=True, slots=True)
class _Letter:
    name: str
    message: Any
    queue: Any
    sent: asyncio.Future[None]


class TaskSender:
    """Sends tasks with one thread and one connection; what waits meanwhile goes out as one batch.

    Celery's own sending blocks; a thread per task would open a connection each.
    """

    def __init__(self, app: ConductorApp, describe: Callable[[], Connection], timeout: float) -> None:
        """`describe` makes a Connection of which no operation waits for ever; `timeout` is for connecting."""
        self._app = app
        self._describe = describe
        self._timeout = timeout
        self._letters: SimpleQueue[_Letter | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Any = None
        self._producer: Any = None

    async def send(self, name: str, message: Any, queue: Any) -> None:
        """Send the task `message` to `queue`; returns when the broker has it.

        Raises MessageBusError, code BROKER_UNAVAILABLE, when the broker cannot be reached in time, and code
        WRONG_QUEUE_TYPE when the queue is there as another type than the broker's URL asks for.
        """
        self._loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="conductor-dispatch", daemon=True)
            self._thread.start()
        sent: asyncio.Future[None] = self._loop.create_future()
        self._letters.put(_Letter(name, message, queue, sent))
        await sent

    async def close(self) -> None:
        """End the thread after what waits was sent."""
        if self._thread is not None:
            self._letters.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _serve(self) -> None:
        try:
            while True:
                letters = self._take()
                goes_on = None not in letters
                batch = [letter for letter in letters if letter is not None and not letter.sent.cancelled()]
                if batch:
                    self._report(batch, self._send_all(batch))
                if not goes_on:
                    return
        finally:
            self._drop_connection()

    def _take(self) -> list[_Letter | None]:
        letters = [self._letters.get()]
        while len(letters) < BATCH and letters[-1] is not None and not self._letters.empty():
            letters.append(self._letters.get())
        return letters

    def _send_all(self, batch: list[_Letter]) -> Exception | None:
        for attempt in (1, 2):
            try:
                self._connect()
                with self._producer.batch():
                    for letter in batch:
                        self._app.amqp.send_task_message(
                            self._producer, letter.name, letter.message, queue=letter.queue, retry=False
                        )
            except Exception as error:  # noqa: BLE001 - it is handed to whoever sent
                lost = isinstance(error, self._connection.recoverable_connection_errors)
                self._drop_connection()
                if attempt == 2 or not lost:
                    return error
            else:
                return None
        return None

    def _connect(self) -> None:
        if self._producer is None:
            self._connection = self._describe()
            connect(self._connection, self._timeout)
            self._producer = self._app.amqp.Producer(self._connection)

    def _drop_connection(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            disconnect(connection)

    def _report(self, batch: list[_Letter], error: Exception | None) -> None:
        def complete() -> None:
            for letter in batch:
                if letter.sent.done():
                    continue
                if error is None:
                    letter.sent.set_result(None)
                else:
                    letter.sent.set_exception(broker_unavailable(error, self._app.addresses.broker_url))

        self._call(complete)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            logger.debug("the event loop ended before its tasks were sent")


def broker_unavailable(error: Exception, url: str, wish: str = "send a task") -> MessageBusError:
    """Make the error of a broker that could not be reached, or refuses, to do what was wished.

    Its code is BROKER_UNAVAILABLE, BROKER_FORBIDDEN, or WRONG_QUEUE_TYPE for a queue of another type.
    """
    if isinstance(error, WrongQueueTypeError):
        sentence, code = str(error), "WRONG_QUEUE_TYPE"
    elif missing := missing_right(error):
        sentence, code = f"The broker refuses to {wish}: {missing}", "BROKER_FORBIDDEN"
    else:
        reason = explain_tls(error, url) or error or type(error).__name__
        sentence, code = f"The broker cannot be reached to {wish}: {reason}", "BROKER_UNAVAILABLE"
    problem = MessageBusError(sentence, code, {"cause": repr(error)})
    problem.__cause__ = error
    return problem
