"""The dead letters of a broker, for those who decide what becomes of them."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar, Unpack

from kombu.exceptions import OperationalError

from conductor.broker.letter_filter import Filters, LetterFilter
from conductor.broker.letter_shelf import open_shelf
from conductor.broker.reopening import Reopening
from conductor.broker.replaying import Replaying, ReplayReport
from conductor.broker.signing import configured_signer
from conductor.broker.task_sender import broker_unavailable
from conductor.broker.transport import kombu_connection, limit_reading
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import ConductorError, ConfigurationError, MessageBusError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from conductor.broker.letter_shelf import Shelf
    from conductor.core.config import ConductorConfig

#: Seconds that the broker may be silent.
IO_TIMEOUT = 5.0
#: Seconds to wait for somebody else who reads or changes the letters on RabbitMQ.
BUSY_TIMEOUT = 10.0
#: Characters of the beginning of an id that may stand for it.
SHORT_ID = 8

T = TypeVar("T")
Letters = list[DeadLetter]


@dataclass(frozen=True, slots=True)
class LetterPage:
    """Some of the letters that match, and how many there are."""

    letters: Letters = field(default_factory=list)
    total: int = 0
    """Letters that match, whether in this page or not."""
    unreadable: int = 0
    """Messages in the queue that cannot be read as letters; they stay there."""


class DeadLetterQueue:
    """The durable queue of dead letters; belongs to one event loop.

    Nothing is connected between calls. Looking at letters never takes them away. On RabbitMQ one caller at a
    time, over all processes, has the queue: the others wait, `busy_timeout` seconds at most. Every method
    raises MessageBusError, code BROKER_UNAVAILABLE, or DLQ_BUSY when that time was not enough.
    """

    def __init__(
        self,
        config: ConductorConfig,
        broker_url: str,
        redis_url: str | None,
        *,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        """Without `redis_url`, that of the result backend, no task can be replayed; all else works."""
        self._config = config
        self._broker_url = broker_url
        self._busy_timeout = busy_timeout
        self._signer = configured_signer(config)
        self._reopening = Reopening(config, redis_url) if redis_url else None

    async def close(self) -> None:
        """Let go of the result backend."""
        if self._reopening is not None:
            await self._reopening.close()

    async def list(self, *, limit: int | None = 50, offset: int = 0, **filters: Unpack[Filters]) -> Letters:
        """List letters, the oldest first; see `Filters`. ConfigurationError: a filter makes no sense.

        A letter that its sender, who died, left there twice is listed once.
        """
        return (await self._look(limit, offset, filters, to_the_end=False)).letters

    async def page(
        self, *, limit: int | None = 50, offset: int = 0, **filters: Unpack[Filters]
    ) -> LetterPage:
        """List letters as `list` does, and count them and what cannot be read."""
        return await self._look(limit, offset, filters, to_the_end=True)

    async def get(self, letter_id: str) -> DeadLetter | None:
        """Find the letter with an id, or else the newest one of the task with it; None if there is none.

        The first eight characters of a letter's id, or more, are enough where no other begins with them:
        MessageBusError, code DEAD_LETTER_AMBIGUOUS.
        """

        def look(shelf: Shelf, stop: threading.Event) -> DeadLetter | None:
            newest, similar = None, dict[str, DeadLetter]()
            with closing(shelf.walk()) as walk:
                for letter in (found.letter for found in walk):
                    if stop.is_set():
                        break
                    if letter is None:
                        continue
                    if letter.letter_id == letter_id:
                        return letter
                    if letter.task_id == letter_id:
                        newest = letter
                    elif len(letter_id) >= SHORT_ID and letter.letter_id.startswith(letter_id):
                        similar[letter.letter_id] = letter
            if newest is None and len(similar) > 1:
                raise _ambiguous(letter_id, list(similar))
            return newest or next(iter(similar.values()), None)

        return await self._do(look, "look for a dead letter")

    async def count(self, **filters: Unpack[Filters]) -> int:
        """Count the letters that match; without filters all that is in the queue, readable or not."""
        if LetterFilter.of(filters).is_open:
            return await self._do(lambda shelf, _: shelf.count(), "count dead letters")
        return (await self.page(limit=0, **filters)).total

    async def replay(
        self,
        letter_id: str | None = None,
        *,
        all: bool = False,  # noqa: A002 - as it reads best where it is called
        **filters: Unpack[Filters],
    ) -> ReplayReport:
        """Send letters back to the queues they came from, each once, whoever else does the same.

        A task begins anew under its id, as if it had never been tried: `Conductor.handle(task_id)` waits for
        it. A letter leaves the queue when what is sent is in the other one, and stays where it cannot be
        replayed; the report says why. `letter_id` is as for `get`. Cancelled, it stops after the letter that
        it is at.

        Raises ConfigurationError, code NOTHING_CHOSEN, when nothing says which letters are meant,
        MessageBusError, code DEAD_LETTER_NOT_FOUND or DEAD_LETTER_AMBIGUOUS, and StateError when the result
        backend is away.
        """
        chosen = await self._choose(letter_id, filters, everything=all, verb="replayed")
        loop = asyncio.get_running_loop()
        work = Replaying(self._reopening, loop, chosen, self._signer)
        return await self._do(work.run, "replay dead letters", details=work.progress)

    async def purge(
        self,
        letter_id: str | None = None,
        *,
        all: bool = False,  # noqa: A002 - as it reads best where it is called
        **filters: Unpack[Filters],
    ) -> int:
        """Delete letters for good and tell how many; chosen, and refused, as by `replay`.

        What cannot be read as a letter stays.
        """
        chosen = await self._choose(letter_id, filters, everything=all, verb="purged")

        def work(shelf: Shelf, stop: threading.Event) -> int:
            purged = set[str]()
            with closing(shelf.walk()) as walk:
                for found in walk:
                    if stop.is_set():
                        break
                    letter = found.letter
                    if letter is not None and chosen.matches(letter) and shelf.remove(found):
                        purged.add(letter.letter_id)
            return len(purged)

        return await self._do(work, "purge dead letters")

    async def _look(
        self, limit: int | None, offset: int, filters: Filters, *, to_the_end: bool
    ) -> LetterPage:
        if offset < 0 or (limit is not None and limit < 0):
            raise ConfigurationError(f"limit and offset: {limit} and {offset} must not be negative")
        end = sys.maxsize if limit is None else offset + limit
        chosen = LetterFilter.of(filters)

        def look(shelf: Shelf, stop: threading.Event) -> LetterPage:
            letters, total, unreadable = Letters(), 0, 0
            seen = set[str]()
            with closing(shelf.walk()) as walk:
                for found in walk:
                    if stop.is_set() or (total >= end and not to_the_end):
                        break
                    if found.letter is None:
                        unreadable += 1
                    elif chosen.matches(found.letter) and found.letter.letter_id not in seen:
                        seen.add(found.letter.letter_id)
                        if offset <= total < end:
                            letters.append(found.letter)
                        total += 1
            return LetterPage(letters, total, unreadable)

        return await self._do(look, "list dead letters")

    async def _choose(
        self, letter_id: str | None, filters: Filters, *, everything: bool, verb: str
    ) -> LetterFilter:
        chosen = LetterFilter.of(filters, letter_id)
        if chosen.is_open and not everything:
            raise ConfigurationError(
                f"Nothing says which dead letters are to be {verb}: give an id, a filter, or all=True.",
                "NOTHING_CHOSEN",
            )
        if letter_id is None:
            return chosen
        letter = await self.get(letter_id)
        if letter is None:
            raise not_found(letter_id)
        return LetterFilter.of(filters, letter.letter_id)

    async def _do(
        self,
        work: Callable[[Shelf, threading.Event], T],
        wish: str,
        details: Callable[[], dict[str, Any]] = dict,
    ) -> T:
        """Do blocking work in a thread; cancelled, wait until the work has heard of it."""
        stop = threading.Event()
        doing = asyncio.ensure_future(asyncio.to_thread(partial(self._with_shelf, work, stop, wish, details)))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({doing})
            if not doing.cancelled():
                doing.exception()
            raise

    def _with_shelf(
        self,
        work: Callable[[Shelf, threading.Event], T],
        stop: threading.Event,
        wish: str,
        details: Callable[[], dict[str, Any]],
    ) -> T:
        limit = self._config.bus.connect_timeout
        connection = kombu_connection(
            self._broker_url, connect_timeout=limit, io_timeout=min(IO_TIMEOUT, limit), confirm_publish=True
        )
        try:
            connection.ensure_connection(max_retries=0)
            limit_reading(connection)
            return work(open_shelf(self._broker_url, connection, self._busy_timeout), stop)
        except (OperationalError, *connection.connection_errors, *connection.channel_errors) as error:
            problem = broker_unavailable(error, self._broker_url, wish)
            problem.details |= details()
            raise problem from error
        except ConductorError as error:
            error.details |= details()
            raise
        finally:
            connection.release()


def not_found(letter_id: str) -> MessageBusError:
    """Make the error of an id that no letter has."""
    return MessageBusError(
        f"There is no dead letter {letter_id!r}, nor one of a task with this id: it may have been replayed "
        "or purged; 'conductor dlq list' shows those that there are.",
        "DEAD_LETTER_NOT_FOUND",
        {"letter_id": letter_id},
    )


def _ambiguous(letter_id: str, ids: list[str]) -> MessageBusError:
    return MessageBusError(
        f"{len(ids)} dead letters begin with {letter_id!r}: give more of the id, {' or '.join(ids[:3])}.",
        "DEAD_LETTER_AMBIGUOUS",
        {"letter_id": letter_id, "similar": ids},
    )
