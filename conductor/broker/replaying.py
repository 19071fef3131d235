"""Replaying dead letters one by one, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from conductor.broker.letter_shelf import UndeliverableError
from conductor.broker.reopening import Verdict
from conductor.broker.replay import replay_of, signed

if TYPE_CHECKING:
    import threading
    from collections.abc import Coroutine

    from conductor.broker.letter_filter import LetterFilter
    from conductor.broker.letter_shelf import Found, Shelf
    from conductor.broker.reopening import Reopening
    from conductor.broker.replay import Replay
    from conductor.broker.signing import Signer
    from conductor.core.dead_letters import DeadLetter

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_QUEUE = "nobody knows the queue it came from"
PUBLISHED = "it was published to {}, where nothing waits in a queue: whoever sent it can publish it again"
NO_REDIS = "the record of its task is in a Redis that is not configured: set CONDUCTOR_REDIS__URL"
BUSY = "task {} was dispatched again and has not ended ({}): wait for it, or cancel it"
GONE = "somebody else replayed or purged it meanwhile"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What became of the letters that were to be replayed."""

    replayed: list[str] = field(default_factory=list)
    """The ids of the letters that were sent back."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why the others were not, by their ids."""
    unreadable: int = 0
    """Messages in the queue that cannot be read as letters; they stay there."""


class Replaying:
    """Replays the letters that match; `run` is called in a thread, the result backend asked on `loop`."""

    def __init__(
        self,
        reopening: Reopening | None,
        loop: asyncio.AbstractEventLoop,
        chosen: LetterFilter,
        signer: Signer | None = None,
    ) -> None:
        self._signer = signer
        self._reopening = reopening
        self._loop = loop
        self._chosen = chosen
        self._replayed: dict[str, None] = {}
        self._refused: dict[str, str] = {}

    def progress(self) -> dict[str, Any]:
        """Tell what was done so far, for an error that ends it."""
        return {"replayed": list(self._replayed)}

    def run(self, shelf: Shelf, stop: threading.Event) -> ReplayReport:
        """Replay until there is no more, or `stop` is set."""
        unreadable = 0
        with closing(shelf.walk()) as walk:
            for found in walk:
                if stop.is_set():
                    break
                if found.letter is None:
                    unreadable += 1
                elif self._chosen.matches(found.letter):
                    self._replay(shelf, found, found.letter)
        return ReplayReport(list(self._replayed), self._refused, unreadable)

    def _replay(self, shelf: Shelf, found: Found, letter: DeadLetter) -> None:
        if letter.letter_id in self._replayed:
            # Its sender died before it could note that it was sent, and it was sent again.
            shelf.remove(found)
            return
        if letter.letter_id in self._refused:
            return
        problem = self._try(shelf, found, letter)
        if problem is None:
            self._replayed[letter.letter_id] = None
            logger.info("Dead letter %s (task %s) was replayed", letter.letter_id, letter.task_id)
        else:
            self._refused[letter.letter_id] = problem
            logger.info("Dead letter %s was not replayed: %s", letter.letter_id, problem)

    def _try(self, shelf: Shelf, found: Found, letter: DeadLetter) -> str | None:
        """Replay a letter; give the reason if it was not."""
        if not letter.queue:
            return PUBLISHED.format(letter.channel) if letter.channel else NO_QUEUE
        if not shelf.holds(found):
            return GONE
        replay = replay_of(letter, letter.queue)
        if self._signer is not None:
            replay = signed(replay, self._signer)
        if replay.task_id is None:
            return _move(shelf, found, replay)
        if self._reopening is None:
            return NO_REDIS
        title = letter.task_name or ""
        reopening = self._reopening.reopen(
            replay.task_id, replay.task_name, letter.letter_id, replay.queue, title
        )
        reopened = self._on_loop(reopening)
        if reopened.verdict is Verdict.BUSY:
            return BUSY.format(replay.task_id, reopened.status)
        if reopened.verdict is Verdict.SENT:
            # Whoever sent it did not come to taking the letter away.
            return None if shelf.remove(found) else GONE
        problem = _move(shelf, found, replay)
        if problem is not None:
            self._on_loop(self._reopening.restore(reopened))
        return problem

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _move(shelf: Shelf, found: Found, replay: Replay) -> str | None:
    try:
        return None if shelf.move(found, replay) else GONE
    except UndeliverableError as error:
        return str(error)
