"""The numbers of a bus on their way to its metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from conductor.core.channels import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor.core.channels import ChannelKind
    from conductor.core.metrics import Metrics

#: Seconds that numbers wait at most.
INTERVAL = 0.2


class MessageCounts:
    """Counts in plain numbers, and hands them on a few times a second; belongs to one event loop.

    A labelled counter for every message would cost more than the message.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._enabled = metrics.enabled
        self._published: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._expired = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None

    def published(self, channel: str) -> None:
        """Count a message that is published."""
        if self._enabled:
            self._published[channel] = self._published.get(channel, 0) + 1
            if self._timer is None:
                self._flush_soon()

    def delivered(self, channel: str) -> None:
        """Count a message that a callback of `channel`, a name or a pattern, is called with."""
        if self._enabled:
            self._delivered[channel] = self._delivered.get(channel, 0) + 1
            if self._timer is None:
                self._flush_soon()

    def expired(self) -> None:
        """Count a message whose time was over."""
        self._expired += 1
        self._flush_soon()

    def dropped(self, count: int) -> None:
        """Count messages that a full buffer did not take."""
        self._dropped += count
        self._flush_soon()

    def flush(self) -> None:
        """Hand everything on at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        metrics, published, delivered = self.metrics, self._published, self._delivered
        expired, dropped = self._expired, self._dropped
        self._published, self._delivered, self._expired, self._dropped = {}, {}, 0, 0
        _hand_on(published, metrics.messages_published)
        _hand_on(delivered, metrics.messages_delivered)
        if expired:
            metrics.messages_expired(expired)
        if dropped:
            metrics.messages_dropped("buffer_full", dropped)

    def _flush_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self.flush)


def _hand_on(numbers: dict[str, int], count: Callable[[ChannelKind, int], None]) -> None:
    by_kind: dict[ChannelKind, int] = {}
    for channel, number in numbers.items():
        kind = kind_of(channel)
        by_kind[kind] = by_kind.get(kind, 0) + number
    for kind, number in by_kind.items():
        count(kind, number)
