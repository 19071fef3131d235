"""Signatures of messages: HMAC-SHA256 over all that says what is to be done, and where."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from conductor.broker.topology import CHANNEL_HEADER, EVENTS, TRIAL_HEADER
from conductor.core.exceptions import MessageBusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kombu import Message

    from conductor.core.config import ConductorConfig
    from conductor.core.signing_config import SigningConfig

KEY, TIME, NONCE, SIGNATURE = (
    "conductor_key",
    "conductor_time",
    "conductor_nonce",
    "conductor_signature",
)
SIGNING_HEADERS = frozenset({KEY, TIME, NONCE, SIGNATURE})
#: What brokers, kombu and the members of groups put into the headers of a message on its way.
_ADDED = frozenset({"redelivered", "compression", CHANNEL_HEADER, TRIAL_HEADER})
_LONGEST_NONCE = 64


class SignatureError(MessageBusError):
    """A message that is refused: MESSAGE_UNSIGNED, _UNKNOWN_KEY, _ALTERED, _STALE or _REPLAYED."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature covers."""

    place: str
    """The queue, or `place_of` a channel or an inbox."""
    body: bytes | str
    headers: Mapping[str, Any]
    """Beside the signature's own, and what a broker adds, all of them."""
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    reply_to: str = ""
    correlation_id: str = ""

    @classmethod
    def of_task(cls, message: Message) -> Signed:
        """Take a message from a queue, as kombu delivered it."""
        properties = message.properties or {}
        return cls(
            place=str((message.delivery_info or {}).get("routing_key") or ""),
            body=message.body if message.body is not None else b"",
            headers=message.headers or {},
            content_type=str(message.content_type or ""),
            content_encoding=str(message.content_encoding or ""),
            reply_to=str(properties.get("reply_to") or ""),
            correlation_id=str(properties.get("correlation_id") or ""),
        )

    def parts(self, otherwise: Callable[[Any], str] | None) -> Iterable[bytes]:
        """Give what is signed, in one order; `otherwise` writes what is no JSON, without it TypeError."""
        yield from map(
            _bytes,
            (self.place, self.content_type, self.content_encoding, self.reply_to, self.correlation_id),
        )
        headers = {name: value for name, value in self.headers.items() if not _is_added(name)}
        yield json.dumps(headers, sort_keys=True, separators=(",", ":"), default=otherwise).encode()
        yield self.body if isinstance(self.body, bytes) else _bytes(self.body)


class Signer:
    """Signs messages with one key and checks them with all; any thread may use it."""

    def __init__(self, config: SigningConfig, longest_wait: float) -> None:
        """`longest_wait`: seconds that a task may be under way before it is refused."""
        self._config = config
        self._longest_wait = longest_wait
        # In closures, for an error may show what an object holds.
        self._macs = {
            name: partial(_mac, key.get_secret_value().encode("utf-8", "surrogatepass"))
            for name, key in config.keys.items()
        }

    @property
    def nonce_seconds(self) -> int:
        """How long a nonce has to be remembered: longer than its message is accepted."""
        return int(self._longest_wait + 2 * self._config.window_seconds) + 1

    @property
    def window_seconds(self) -> float:
        """How far clocks may be apart, and how long a message may be under way that nobody keeps."""
        return self._config.window_seconds

    def sign(self, signed: Signed, nonce: str = "") -> dict[str, str]:
        """Give the headers that make a message a signed one; each time with another nonce.

        MessageBusError, code INVALID_MESSAGE: a header is no JSON, which might arrive as something else.
        """
        key = str(self._config.key_id)
        stamp = {KEY: key, TIME: repr(time.time()), NONCE: nonce or uuid.uuid4().hex}
        try:
            return stamp | {SIGNATURE: self._macs[key](stamp, signed, None)}
        except (TypeError, ValueError) as error:
            raise MessageBusError(
                f"A message whose headers are no JSON cannot be signed ({error}): send text, numbers, lists "
                "and dictionaries only.",
                "INVALID_MESSAGE",
            ) from error

    def verify(
        self, signed: Signed, longest_wait: float | None = None, received_at: float | None = None
    ) -> str | None:
        """Give the nonce of a message that is as it was signed, None for an unsigned one that is accepted.

        `longest_wait` seconds are allowed instead of the signer's own, until `received_at` or else now.
        SignatureError: MESSAGE_UNSIGNED, MESSAGE_UNKNOWN_KEY, MESSAGE_ALTERED or MESSAGE_STALE.
        """
        if not SIGNING_HEADERS & signed.headers.keys():
            if self._config.accept_unsigned:
                return None
            raise SignatureError("The message is not signed.", "MESSAGE_UNSIGNED")
        found = {name: signed.headers.get(name) for name in SIGNING_HEADERS}
        stamp = {name: value for name, value in found.items() if isinstance(value, str)}
        if len(stamp) != len(found) or len(stamp[NONCE]) > _LONGEST_NONCE:
            raise SignatureError("The signature of the message is damaged.", "MESSAGE_ALTERED")
        mac = self._macs.get(stamp[KEY])
        if mac is None:
            text = f"The message is signed with key {stamp[KEY][:64]!r}, which is not in signing.keys."
            raise SignatureError(text, "MESSAGE_UNKNOWN_KEY")
        if not hmac.compare_digest(_bytes(mac(stamp, signed, repr)), _bytes(stamp[SIGNATURE])):
            raise SignatureError("The message is not what was signed.", "MESSAGE_ALTERED")
        age, most = (received_at or time.time()) - float(stamp[TIME]), longest_wait or self._longest_wait
        if not -self._config.window_seconds <= age <= most:
            text = f"The message was signed {age:.0f} s ago; {most:g} s are allowed."
            raise SignatureError(text, "MESSAGE_STALE")
        return stamp[NONCE]


class Seals:
    """Signs one after the other what one connection of a bus sends; belongs to one thread.

    Its nonces count, so that whoever receives need not remember each of them.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._stream = uuid.uuid4().hex
        self._count = itertools.count(1)

    def sign(self, signed: Signed) -> dict[str, str]:
        """See `Signer.sign`."""
        return self._signer.sign(signed, f"{self._stream}.{next(self._count)}")


def seals_of(signer: Signer | None) -> Seals | None:
    """Make seals where there is a signer."""
    return None if signer is None else Seals(signer)


def place_of(exchange: str, key: str) -> str:
    """Give the place of what is published to a channel or an inbox: no queue is called so."""
    return f"{exchange}\n{key}"


def event_place(channel: str) -> str:
    """Give the place of what is published to a channel."""
    return place_of(EVENTS, channel)


def configured_signer(config: ConductorConfig) -> Signer | None:
    """Make the signer that a configuration asks for; None where it has no keys."""
    return Signer(config.signing, config.redis.result_expires_seconds) if config.signing.keys else None


def _mac(key: bytes, stamp: Mapping[str, str], signed: Signed, otherwise: Callable[[Any], str] | None) -> str:
    mac = hmac.new(key, b"conductor message 1", hashlib.sha256)
    for part in (*(_bytes(stamp[name]) for name in (KEY, TIME, NONCE)), *signed.parts(otherwise)):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.hexdigest()


def _is_added(name: str) -> bool:
    return name in SIGNING_HEADERS or name in _ADDED or name.startswith("x-")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
