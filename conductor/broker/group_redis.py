"""Groups on Redis and Valkey: a list of kombu's envelopes that members take from, each step one script.

Kombu's own consumer takes in two steps, between which a kill loses the message, and knows neither delays nor
counts; its connection, and the form of what is in the list, are kombu's.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import ssl
import time
import uuid
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json
from redis.exceptions import ConnectionError as RedisConnectionError

from conductor.broker.dead_letters import publish_dead_letter
from conductor.broker.group_link import Delivery, Member
from conductor.broker.group_seen import SeenMessages
from conductor.broker.results import script
from conductor.broker.topology import EVENTS, GROUP_REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Connection

    from conductor.core.dead_letters import DeadLetter
    from conductor.orchestration.groups import Trial

logger = logging.getLogger(__name__)

_GULP = 65536


class RedisGroupLink:
    """See `GroupLink`. A second socket, subscribed to the queues' names, tells that there may be something.

    A member's claim ends `visibility_timeout` seconds after it was touched last, by the clock of the server;
    this link touches those of its members, also after a lost connection. What others abandoned is found by
    every look for a message, of which there is one each `restore_interval` seconds at least.
    """

    keeps_deliveries = True

    def __init__(
        self,
        connection: Connection,
        claims: dict[str, Member],
        *,
        visibility_timeout: float,
        touch_interval: float,
        restore_interval: float,
    ) -> None:
        self._kombu = connection
        self._claims = claims
        self._visibility = visibility_timeout
        self._touch_interval = touch_interval
        self._look_interval = restore_interval
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            channel = connection.default_channel
            self._client = channel.client
            self.seen: SeenMessages | None = SeenMessages(self._client)
            self._producer = connection.Producer()
            self._take = self._client.register_script(script("group_take"))
            self._settle_script = self._client.register_script(script("group_settle"))
            self._waker = channel.async_pool.get_connection()
        except BaseException:
            connection.release()
            raise
        self._members: list[Member] = []
        self._touch_at = 0.0
        self._look_at = 0.0

    def fileno(self) -> int:
        """See `GroupLink.fileno`."""
        number: int = self._waker._sock.fileno()  # noqa: SLF001
        return number

    def join(self, member: Member) -> None:
        """See `GroupLink.join`."""
        self._client.hset(GROUP_REGISTRY, member.queue, member.pattern)
        self._waker.send_command("SUBSCRIBE", member.queue, check_health=False)
        self._members.append(member)

    def leave(self, member: Member) -> None:
        """See `GroupLink.leave`."""
        self._members.remove(member)

    def receive(self) -> Iterator[Delivery]:
        """See `GroupLink.receive`."""
        self._drain_waker()
        self._look_at = time.monotonic() + self._look_interval
        busy = {member.tag for member in self._claims.values()}
        for member in self._members:
            if member.tag not in busy and (delivery := self._next_for(member)) is not None:
                yield delivery

    def _drain_waker(self) -> None:
        """Throw away what came: that it came is all it says."""
        sock = self._waker._sock  # noqa: SLF001
        timeout = sock.gettimeout()
        sock.settimeout(0)
        try:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                while data := sock.recv(_GULP):
                    if len(data) < _GULP:
                        return
                raise RedisConnectionError("the broker closed the connection")
        finally:
            sock.settimeout(timeout)

    def _next_for(self, member: Member) -> Delivery | None:
        claim = uuid.uuid4().hex
        found = self._take(keys=_keys(member.queue), args=[claim, self._visibility])
        if not isinstance(found, list):
            if found >= 0:
                self._look_at = min(self._look_at, time.monotonic() + found / 1000)
            return None
        self._claims[claim] = member
        return self._delivery(member, claim, found[0], lost=bool(found[1]))

    def _delivery(self, member: Member, claim: str, raw: bytes, *, lost: bool) -> Delivery:
        envelope, body = _read(raw)
        if envelope is None:
            # The whole of it is the body, which then is no message either.
            return Delivery(
                member=member,
                receipt=(claim, None),
                body=raw,
                headers={},
                properties={},
                identity=claim,
                channel=None,
                published=False,
                lost=lost,
            )
        properties: dict[str, Any] = envelope["properties"]
        info = properties["delivery_info"]
        published = info.get("exchange") == EVENTS
        return Delivery(
            member=member,
            receipt=(claim, envelope),
            body=body,
            headers=envelope["headers"],
            properties=properties | {"content_type": envelope.get("content-type")},
            identity=str(properties["delivery_tag"]),
            channel=info.get("routing_key") if published else None,
            published=published,
            lost=lost,
        )

    def tend(self) -> float:
        """See `GroupLink.tend`."""
        now = time.monotonic()
        if now >= self._touch_at:
            self._touch_at = now + self._touch_interval
            self._touch()
        return max(0.0, min(self._touch_at, self._look_at) - now)

    def _touch(self) -> None:
        claims: dict[str, list[str]] = {}
        for claim, member in self._claims.items():
            claims.setdefault(member.queue, []).append(claim)
        if not claims:
            return
        seconds, microseconds = self._client.time()
        until = seconds + microseconds / 1e6 + self._visibility
        for queue, own in claims.items():
            self._client.zadd(_keys(queue)[2], dict.fromkeys(own, until), xx=True)

    def done(self, delivery: Delivery) -> None:
        """See `GroupLink.done`."""
        self._settle(delivery, "done")

    def later(self, delivery: Delivery, trial: Trial, seconds: float) -> None:
        """See `GroupLink.later`."""
        self._settle(delivery, "later", self._encode(delivery, trial), seconds)

    def give_back(self, delivery: Delivery, trial: Trial) -> None:
        """See `GroupLink.give_back`."""
        self._settle(delivery, "back", self._encode(delivery, trial))

    def note(self, delivery: Delivery, trial: Trial) -> bool:
        """See `GroupLink.note`."""
        claim, _ = delivery.receipt
        arguments = [claim, "note", self._encode(delivery, trial)]
        if self._settle_script(keys=_keys(delivery.member.queue), args=arguments):
            return True
        # It took too long, and is somebody else's: this member is free.
        self._claims.pop(claim, None)
        return False

    def bury(self, delivery: Delivery, letter: DeadLetter) -> None:
        """See `GroupLink.bury`."""
        publish_dead_letter(self._producer, letter)
        self.done(delivery)

    def delete(self, queue: str) -> None:
        """See `GroupLink.delete`."""
        pipeline = self._client.pipeline()
        pipeline.hdel(GROUP_REGISTRY, queue)
        pipeline.delete(*_keys(queue))
        pipeline.execute()

    def close(self) -> None:
        """See `GroupLink.close`."""
        with contextlib.suppress(Exception):
            self._kombu.release()
        with contextlib.suppress(Exception):
            self._waker.disconnect()

    def _settle(self, delivery: Delivery, how: str, *arguments: bytes | float) -> None:
        claim, _ = delivery.receipt
        if not self._settle_script(keys=_keys(delivery.member.queue), args=[claim, how, *arguments]):
            logger.warning(
                "Message %s of %s was not the member's any more: it took longer than %g s without a sign of "
                "life, or the group was deleted",
                delivery.identity,
                delivery.member.queue,
                self._visibility,
            )
        self._claims.pop(claim, None)

    def _encode(self, delivery: Delivery, trial: Trial) -> bytes:
        _, envelope = delivery.receipt
        if envelope is None and isinstance(delivery.body, bytes):
            return delivery.body
        return to_json(envelope | {"headers": delivery.headers_for(trial)})


def _read(raw: bytes) -> tuple[dict[str, Any] | None, bytes | str]:
    """Give the envelope and the body in it; None and all of it where it is no envelope of kombu's."""
    try:
        # Stricter than kombu's reader, which takes halves of characters that cannot be written again.
        match from_json(raw):
            case {
                "body": str(body),
                "headers": dict(),
                "properties": {"delivery_tag": _, "delivery_info": {"routing_key": str()}, **others},
            } as envelope if others.get("body_encoding") in (None, "base64"):
                return envelope, base64.b64decode(body, validate=True) if others.get(
                    "body_encoding"
                ) else body
    except ValueError:
        pass
    return None, raw


def _keys(queue: str) -> list[str]:
    return [queue, f"{queue}.held", f"{queue}.deadlines", f"{queue}.later"]
