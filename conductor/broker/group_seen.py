"""Which messages a group had lately, in Redis, for all its members."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import redis

if TYPE_CHECKING:
    from conductor.broker.group_link import Delivery

_DONE = b"done"
#: Seconds that one answer of the Redis may take.
_TIMEOUT = 5.0


class SeenMessages:
    """One key for each message id and queue, which expires with the window; used by one thread, and blocks.

    A key holds the identity of the delivery that came first, so that this one may be tried again, and after
    its callback returned the word that it is done. Raises what redis-py raises.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def is_repetition(self, delivery: Delivery) -> bool:
        """Whether another delivery of the message id came before; if not, this one is noted."""
        if delivery.member.window is None:
            return False
        key, identity = _key(delivery), _identity(delivery)
        while not self._client.set(key, identity, nx=True, px=_milliseconds(delivery)):
            known = self._client.get(key)
            if known is not None:
                return bool(known != identity)
            # It expired in between.
        return False

    def finish(self, delivery: Delivery) -> None:
        """Note that the message was handled; its window begins."""
        if delivery.member.window is not None:
            self._client.set(_key(delivery), _DONE, px=_milliseconds(delivery))

    def forget(self, delivery: Delivery) -> None:
        """Note that the message was not handled and will not be, so that it may be sent again."""
        if delivery.member.window is not None and self._client.get(_key(delivery)) == _identity(delivery):
            self._client.delete(_key(delivery))

    def take_nonce(self, delivery: Delivery, seconds: int) -> bool:
        """Note that the work on a signed message begins; False if it was done, or is being done elsewhere."""
        key, delivery.claim = _nonce_key(delivery), delivery.claim or uuid.uuid4().hex
        while not self._client.set(key, delivery.claim, nx=True, ex=seconds):
            known = self._client.get(key)
            if known is not None:
                # Only the broker can say that whoever had it is lost.
                return known != _DONE and (delivery.lost or known == delivery.claim.encode())
        return True

    def release_nonce(self, delivery: Delivery) -> None:
        """Note that the work on a signed message ended without an end of it: it will come again."""
        if self._client.get(_nonce_key(delivery)) != _DONE:
            self._client.delete(_nonce_key(delivery))

    def settle_nonce(self, delivery: Delivery, seconds: int) -> None:
        """Note that the work on a signed message is done: nobody may send it again."""
        self._client.set(_nonce_key(delivery), _DONE, ex=seconds)

    def check(self) -> None:
        """Return if the Redis is there."""
        self._client.ping()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def open_seen(url: str) -> SeenMessages:
    """Use the Redis at `url`; nothing is connected yet."""
    return SeenMessages(redis.Redis.from_url(url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT))


def _identity(delivery: Delivery) -> bytes:
    return f"by {delivery.identity}".encode()


def _key(delivery: Delivery) -> str:
    message_id = "" if delivery.message is None else delivery.message.message_id
    return f"{delivery.member.queue}.seen.{message_id}"


def _nonce_key(delivery: Delivery) -> str:
    return f"{delivery.member.queue}.nonce.{delivery.nonce}"


def _milliseconds(delivery: Delivery) -> int:
    return max(1, int((delivery.member.window or 0) * 1000))
