"""Dead letters on Redis: kombu's queue is a list of JSON envelopes, the oldest at its right end."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from kombu.utils.json import dumps, loads

from conductor.broker.letter_shelf import Found, read, unreadable
from conductor.broker.results import script
from conductor.broker.topology import DEAD_LETTERS, WORK, work_queue

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from kombu import Connection

    from conductor.broker.replay import Replay

#: Messages that are read at once.
CHUNK = 200


class RedisShelf:
    """See `Shelf`."""

    def __init__(self, connection: Connection) -> None:
        self._channel = connection.default_channel
        self._client: Any = self._channel.client
        self._taken: set[bytes] = set()

    def count(self) -> int:
        """See `Shelf.count`."""
        return int(self._client.llen(DEAD_LETTERS))

    def walk(self) -> Generator[Found, None, None]:
        """See `Shelf.walk`."""
        left, seen = self.count(), set[bytes]()
        for raw, perhaps_again in self._items():
            mark = blake2b(raw, digest_size=16).digest()
            if perhaps_again and mark in seen:
                continue
            if not left:
                return
            left -= 1
            seen.add(mark)
            yield self._read(raw)

    def holds(self, found: Found) -> bool:
        """See `Shelf.holds`."""
        return self._client.lpos(DEAD_LETTERS, found.token, rank=-1) is not None

    def remove(self, found: Found) -> bool:
        """See `Shelf.remove`."""
        return self._took(found, self._client.lrem(DEAD_LETTERS, -1, found.token))

    def move(self, found: Found, replay: Replay) -> bool:
        """See `Shelf.move`."""
        message = self._envelope(replay)
        priority = self._channel._get_message_priority(message, reverse=False)  # noqa: SLF001
        destination = self._channel._q_for_pri(replay.queue, priority)  # noqa: SLF001
        arguments = (DEAD_LETTERS, destination, found.token, dumps(message))
        return self._took(found, self._client.eval(script("move_letter"), 2, *arguments))

    def _items(self) -> Iterator[tuple[bytes, bool]]:
        """Give what is in the list from its right end, in chunks, and whether it may have been given before.

        A chunk begins with the last item of those before that was not taken away here. If that is not where
        it was, somebody took away an older one, and some were perhaps passed over: it begins anew.
        """
        kept, last, anew = 0, None, False
        while True:
            chunk = self._client.lrange(DEAD_LETTERS, -(kept + CHUNK), -max(kept, 1))[::-1]
            if last is not None and chunk[:1] != [last]:
                kept, last, anew = 0, None, True
                continue
            fresh = chunk if last is None else chunk[1:]
            if not fresh:
                return
            for raw in fresh:
                yield raw, anew
                if raw not in self._taken:
                    kept, last = kept + 1, raw
            self._taken.clear()

    def _took(self, found: Found, number: int) -> bool:
        self._taken.add(found.token)
        return bool(number)

    def _read(self, raw: bytes) -> Found:
        try:
            message = loads(raw)
            body = self._channel.decode_body(message["body"], message["properties"].get("body_encoding"))
            return read(raw, body, message["headers"])
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            return unreadable(raw, error)

    def _envelope(self, replay: Replay) -> dict[str, Any]:
        message: dict[str, Any] = self._channel.prepare_message(
            replay.body,
            priority=replay.priority,
            content_type=replay.content_type,
            content_encoding=replay.content_encoding,
            headers=replay.headers,
            properties=dict(replay.properties),
        )
        exchange = WORK if work_queue(replay.queue) else ""
        self._channel._inplace_augment_message(message, exchange, replay.queue)  # noqa: SLF001
        return message
