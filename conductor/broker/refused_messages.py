"""Dead letters of messages that channels, and remote control, refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis

from conductor.broker.dead_letter_sender import DeadLetterSender
from conductor.broker.dead_letters import encode_body
from conductor.broker.task_letters import as_json
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.messages import AgentMessage
from conductor.core.metrics import NO_METRICS, Metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.broker.signing import SignatureError, Signer

logger = logging.getLogger(__name__)

#: The schemes of a Redis in which refusals can be noted.
REDIS_SCHEMES = ("redis", "rediss", "unix")
#: Seconds in which a message that many refuse becomes one letter.
ONE_LETTER = 10
#: Letters that may wait to be sent; of more there are only counts and log lines.
MOST_WAITING = 200
#: Seconds that a letter waits for a broker that is away, and the Redis has to answer.
PATIENCE = 2.0
#: Seconds that the letters have when the bus disconnects.
_END_LIMIT = 5.0
KEY_PREFIX = "conductor.refused."


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was refused, as it came."""

    channel: str
    body: str | bytes
    headers: Mapping[str, Any]
    properties: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Tell it from all others, the same wherever it came."""
        about = json.dumps([self.channel, as_json([dict(self.headers), self.properties])], sort_keys=True)
        found = hashlib.sha256(about.encode())
        found.update(self.body if isinstance(self.body, bytes) else self.body.encode(errors="surrogatepass"))
        return found.hexdigest()

    def letter(self, error: SignatureError) -> DeadLetter:
        """Make its dead letter."""
        body, encoding = encode_body(self.body)
        try:
            message_id = AgentMessage.model_validate_json(body).message_id
        except ValueError:
            message_id = None
        return DeadLetter(
            reason=DeadLetterReason.REFUSED,
            message_id=message_id,
            error_type=type(error).__name__,
            error_code=error.error_code,
            error_message=error.message,
            channel=self.channel,
            body=body,
            body_encoding=encoding,
            headers={str(name): as_json(value) for name, value in self.headers.items()},
            properties={name: value for name, value in self.properties.items() if value is not None},
        )


class RefusedMessages:
    """Makes one letter of a message, however many refuse it; blocks, and belongs to one thread.

    That needs a Redis: where none is known, or none answers, each who refuses a message makes a letter.
    """

    def __init__(
        self,
        broker_url: str,
        redis_url: str | None,
        connect_timeout: float,
        signer: Signer | None,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._letters = DeadLetterSender(broker_url, connect_timeout, PATIENCE, metrics, signer)
        url = next((url for url in (redis_url, broker_url) if url and _is_redis(url)), None)
        self._redis = None if url is None else redis.Redis.from_url(url, **_LIMITS)

    def keep(self, refused: Refused, error: SignatureError) -> None:
        """Make the letter; MessageBusError, code BROKER_UNAVAILABLE."""
        if self._is_first(refused, error):
            self._letters.send(refused.letter(error))

    def close(self) -> None:
        """Close the connections."""
        self._letters.close()
        if self._redis is not None:
            self._redis.close()

    def _is_first(self, refused: Refused, error: SignatureError) -> bool:
        if self._redis is None:
            return True
        try:
            key = f"{KEY_PREFIX}{refused.digest()}.{error.error_code}"
            return bool(self._redis.set(key, b"1", nx=True, ex=ONE_LETTER))
        except redis.RedisError as trouble:
            logger.warning("Whether others refused the message too is not known: %s", trouble)
            return True


class RefusalDesk:
    """Has letters made in a thread of its own."""

    def __init__(self, messages: RefusedMessages) -> None:
        self._messages = messages
        self._thread = ThreadPoolExecutor(1, "conductor refused messages")
        self._room = threading.BoundedSemaphore(MOST_WAITING)

    def keep(self, refused: Refused, error: SignatureError) -> None:
        """Have a letter made; where too many wait there is none."""
        if self._room.acquire(blocking=False):
            self._thread.submit(self._keep, refused, error)

    def _keep(self, refused: Refused, error: SignatureError) -> None:
        try:
            self._messages.keep(refused, error)
        except Exception:
            logger.exception("The dead letter of what %s refused could not be kept", refused.channel)
        finally:
            self._room.release()

    async def close(self) -> None:
        """Return when the last letter is sent, and the connections are closed."""
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._messages.close)
        self._thread.shutdown(wait=False)
        await asyncio.wait({closing}, timeout=_END_LIMIT)

    def abandon(self) -> None:
        """The same without waiting."""
        self._thread.submit(self._messages.close)
        self._thread.shutdown(wait=False)


_LIMITS: dict[str, Any] = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}


def _is_redis(url: str) -> bool:
    return urlsplit(url).scheme in REDIS_SCHEMES
