"""Letting in only what somebody with a key sent to a channel or an inbox, once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conductor.broker.refused_messages import RefusalDesk, Refused, RefusedMessages
from conductor.broker.signing import SignatureError
from conductor.broker.wire import signed_in

if TYPE_CHECKING:
    from conductor.broker.signing import Signer
    from conductor.broker.wire import Address, Incoming
    from conductor.core.metrics import Metrics

#: Messages by which one may be overtaken by others of its sender.
_OVERTAKEN = 1024
_ALL = (1 << _OVERTAKEN) - 1
#: Seconds between two looks for senders that are silent.
_TIDY_INTERVAL = 60.0


class MessageGuard:
    """Checks what nobody keeps: it is delivered at once, or never; belongs to one thread.

    A subscriber that has just started knows no copies, and takes one of a message that was signed less than
    `signing.window_seconds` ago, once.
    """

    def __init__(self, signer: Signer, refusals: RefusalDesk) -> None:
        """`refusals` makes dead letters of what is refused; whoever has the guard closes it."""
        self._signer = signer
        self.refusals = refusals
        self._had: dict[tuple[str, str, str], _Stream] = {}
        self._tidy_at = 0.0

    def check(self, address: Address, incoming: Incoming, received_at: float | None = None) -> None:
        """Return for what is genuine and came by `address` for the first time; else SignatureError.

        `received_at`: when it came, in seconds since the epoch; now, unless it had to wait here.
        """
        try:
            limit = self._signer.window_seconds
            nonce = self._signer.verify(signed_in(address, incoming), limit, received_at)
            if nonce is not None and not self._is_new(address, nonce):
                text = "The message was sent once more after it was delivered."
                raise SignatureError(text, "MESSAGE_REPLAYED")
        except SignatureError as error:
            properties = {"reply_to": incoming.reply_to, "correlation_id": incoming.correlation_id}
            self.refusals.keep(Refused(incoming.channel, incoming.body, incoming.headers, properties), error)
            raise

    def _is_new(self, address: Address, nonce: str) -> bool:
        name, _, number = nonce.rpartition(".")
        if not number.isdecimal():
            raise SignatureError("The message was signed for another purpose.", "MESSAGE_ALTERED")
        now = time.monotonic()
        if now >= self._tidy_at:
            self._tidy(now)
        stream = self._had.setdefault((address.exchange, address.key, name), _Stream())
        stream.last = now
        return stream.take(int(number))

    def _tidy(self, now: float) -> None:
        """Forget senders of which nothing could be sent again that is not stale."""
        self._tidy_at = now + _TIDY_INTERVAL
        oldest = now - 2 * self._signer.window_seconds - _TIDY_INTERVAL
        self._had = {key: stream for key, stream in self._had.items() if stream.last > oldest}


def guard_for(
    signer: Signer | None, broker_url: str, redis_url: str | None, connect_timeout: float, metrics: Metrics
) -> MessageGuard | None:
    """Make a guard where there is a signer; it makes letters over connections of its own."""
    if signer is None:
        return None
    messages = RefusedMessages(broker_url, redis_url, connect_timeout, signer, metrics)
    return MessageGuard(signer, RefusalDesk(messages))


@dataclass(slots=True)
class _Stream:
    """Which messages of one sender came: the highest number, and a bit for each of those just below it."""

    highest: int = 0
    had: int = 0
    last: float = 0.0

    def take(self, number: int) -> bool:
        """Note a number; False for one that came before, or that so many overtook that nobody knows."""
        ahead = number - self.highest
        if ahead > 0:
            self.had = ((self.had << min(ahead, _OVERTAKEN)) | 1) & _ALL
            self.highest = number
            return True
        if -ahead >= _OVERTAKEN or self.had >> -ahead & 1:
            return False
        self.had |= 1 << -ahead
        return True
