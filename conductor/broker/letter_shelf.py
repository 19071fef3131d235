"""Where dead letters are kept, whichever the broker; blocks, and raises what kombu raises."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from conductor.broker.dead_letters import letter_of
from conductor.broker.transport import is_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Generator

    from kombu import Connection

    from conductor.broker.replay import Replay
    from conductor.core.dead_letters import DeadLetter

logger = logging.getLogger(__name__)


class UndeliverableError(Exception):
    """What is replayed cannot be put where it came from; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A message in the queue of dead letters; `letter` is None where it cannot be read as one."""

    token: Any
    """What the shelf knows it by."""
    letter: DeadLetter | None


class Shelf(Protocol):
    """The queue of dead letters over one connection; belongs to one thread."""

    def count(self) -> int:
        """Count the messages, also those that cannot be read."""

    def walk(self) -> Generator[Found, None, None]:
        """Give each message that is there now, the oldest first, and take none away.

        What is given may be removed or moved before the next is asked for. Close the iterator.
        """

    def holds(self, found: Found) -> bool:
        """Whether it is still there."""

    def remove(self, found: Found) -> bool:
        """Take a message away; False if it was not there any more."""

    def move(self, found: Found, replay: Replay) -> bool:
        """Take a message away and put what is replayed of it into its queue; False if it was not there.

        It is never in neither of the queues. UndeliverableError: it stayed where it is.
        """


def open_shelf(url: str, connection: Connection, busy_timeout: float) -> Shelf:
    """Give the shelf of a broker over a connection that is made."""
    if is_rabbitmq(url):
        from conductor.broker.letter_shelf_amqp import AmqpShelf

        return AmqpShelf(connection, busy_timeout)
    from conductor.broker.letter_shelf_redis import RedisShelf

    return RedisShelf(connection)


def read(token: Any, body: Any, headers: Any) -> Found:
    """Read a message that should be a dead letter."""
    try:
        return Found(token, letter_of(body, headers))
    except (ValueError, TypeError, AttributeError) as error:
        return unreadable(token, error)


def unreadable(token: Any, error: Exception) -> Found:
    """Give what cannot be read, and log why."""
    reason = str(error).replace("\n", " ")[:300]
    logger.warning("A message among the dead letters is none and was left there: %s", reason)
    return Found(token, None)
