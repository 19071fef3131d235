"""A thread that keeps one connection to the broker, and comes back with it after every loss."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from conductor.broker.wire import missing_right, unavailable
from conductor.core.config import mask_url

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds between attempts to connect: the first, doubled up to the last.
FIRST_DELAY, LAST_DELAY = 0.1, 2.0


class Closable(Protocol):
    """A connection of either kind."""

    def close(self) -> None:
        """Close the connection; never raises."""


Link = TypeVar("Link", bound=Closable)


class LinkThread(threading.Thread, ABC, Generic[Link]):
    """Connects, serves until the connection is lost, and again, until it is told to stop.

    Made, started and stopped on the event loop. `connected` gets the outcome of the first attempt, a
    MessageBusError if it failed; after a failure of the first attempt the thread ends. `ended` is done when
    the thread touches neither loop nor broker any more. Both are futures of the loop.
    """

    def __init__(self, name: str, url: str, open_link: Callable[[], Link]) -> None:
        super().__init__(name=name, daemon=True)
        self._loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._url = url
        self._open = open_link
        self._stopping = threading.Event()
        self._was_connected = False
        self.trouble: str | None = None
        """Why there is no connection now, for error messages."""

    def stop(self) -> None:
        """Have the thread finish what it can and end; returns at once."""
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        """Do the work; see the class."""
        try:
            self._keep_connected()
        except Exception:
            logger.exception("%s ends by a defect; please report it", self.name)
        finally:
            self._on_end()
            self._post(_settle, self.ended)

    def _keep_connected(self) -> None:
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            link = self._try_open()
            if link is not None:
                delay = FIRST_DELAY
                self._serve_link(link)
            elif not self._was_connected:
                return
            self._tidy()
            if self._stopping.wait(delay):
                return
            delay = min(2 * delay, LAST_DELAY)

    def _try_open(self) -> Link | None:
        try:
            link = self._open()
        except Exception as cause:  # noqa: BLE001  it becomes one of ours
            error = unavailable(cause, self._url)
            error.__cause__ = cause
            self.trouble = error.message
            if self._was_connected:
                logger.debug("%s: %s", self.name, error)
            self._post(_fail, self.connected, error)
            return None
        if self._was_connected:
            logger.info("%s is connected again to %s", self.name, mask_url(self._url))
        self._was_connected, self.trouble = True, None
        self._post(_settle, self.connected)
        return link

    def _serve_link(self, link: Link) -> None:
        try:
            self._serve(link)
        except Exception as error:
            if not self._stopping.is_set():
                why = missing_right(error) or error or type(error).__name__
                self.trouble = f"The connection to {mask_url(self._url)} was lost: {why}"
                logger.warning(
                    "%s: %s. Connecting again.", self.name, self.trouble, exc_info=_unexpected(error)
                )
        finally:
            link.close()

    def _post(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call `function` on the loop, which may be gone when nobody disconnected."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._stopping.set()

    @abstractmethod
    def _serve(self, link: Link) -> None:
        """Work with `link` until `stop` was called; raise when it is lost."""

    @abstractmethod
    def _wake(self) -> None:
        """Make `_serve` see that it has to stop; called on the loop."""

    def _tidy(self) -> None:
        """Let go of what has become useless; called between two attempts to connect."""

    def _on_end(self) -> None:
        """Clean up in the thread, when it will do nothing else."""


def _unexpected(error: Exception) -> bool:
    """Whether an error is none of a connection, so that its origin is worth a traceback."""
    from amqp.exceptions import AMQPError
    from redis.exceptions import RedisError

    return not isinstance(error, OSError | AMQPError | RedisError)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # the first of two threads to fail is reported, the other need not be
