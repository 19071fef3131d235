"""Signatures of task messages: HMAC-SHA256 over all that says what is to be done."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kombu import Message

    from conductor.core.signing_config import SigningConfig

KEY, TIME, NONCE, SIGNATURE = (
    "conductor_key",
    "conductor_time",
    "conductor_nonce",
    "conductor_signature",
)
SIGNING_HEADERS = frozenset({KEY, TIME, NONCE, SIGNATURE})
#: What brokers and kombu put into the headers of a message on its way.
_ADDED = frozenset({"redelivered", "compression"})
_LONGEST_NONCE = 64


class SignatureError(Exception):
    """A message that is refused; `code` is that of its dead letter."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature covers."""

    queue: str
    body: bytes | str
    headers: Mapping[str, Any]
    """Beside the signature's own, and what a broker adds, all of them."""
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    reply_to: str = ""
    correlation_id: str = ""

    @classmethod
    def of_message(cls, message: Message) -> Signed:
        """Take a message as kombu delivered it."""
        properties = message.properties or {}
        return cls(
            queue=str((message.delivery_info or {}).get("routing_key") or ""),
            body=message.body if message.body is not None else b"",
            headers=message.headers or {},
            content_type=str(message.content_type or ""),
            content_encoding=str(message.content_encoding or ""),
            reply_to=str(properties.get("reply_to") or ""),
            correlation_id=str(properties.get("correlation_id") or ""),
        )

    def parts(self) -> Iterable[bytes]:
        """Give what is signed, always in the same order."""
        yield from map(
            _bytes,
            (self.queue, self.content_type, self.content_encoding, self.reply_to, self.correlation_id),
        )
        headers = {name: value for name, value in self.headers.items() if not _is_added(name)}
        yield json.dumps(headers, sort_keys=True, separators=(",", ":"), default=repr).encode()
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

    def sign(self, signed: Signed) -> dict[str, str]:
        """Give the headers that make a message a signed one; each time with another nonce."""
        key = str(self._config.key_id)
        stamp = {KEY: key, TIME: repr(time.time()), NONCE: uuid.uuid4().hex}
        return stamp | {SIGNATURE: self._macs[key](stamp, signed)}

    def verify(self, signed: Signed) -> str | None:
        """Give the nonce of a message that is as it was signed, None for an unsigned one that is accepted.

        SignatureError: MESSAGE_UNSIGNED, MESSAGE_UNKNOWN_KEY, MESSAGE_ALTERED or MESSAGE_STALE.
        """
        if not SIGNING_HEADERS & signed.headers.keys():
            if self._config.accept_unsigned:
                return None
            raise SignatureError("MESSAGE_UNSIGNED", "The message is not signed.")
        found = {name: signed.headers.get(name) for name in SIGNING_HEADERS}
        stamp = {name: value for name, value in found.items() if isinstance(value, str)}
        if len(stamp) != len(found) or len(stamp[NONCE]) > _LONGEST_NONCE:
            raise SignatureError("MESSAGE_ALTERED", "The signature of the message is damaged.")
        mac = self._macs.get(stamp[KEY])
        if mac is None:
            text = f"The message is signed with key {stamp[KEY][:64]!r}, which is not in signing.keys."
            raise SignatureError("MESSAGE_UNKNOWN_KEY", text)
        if not hmac.compare_digest(_bytes(mac(stamp, signed)), _bytes(stamp[SIGNATURE])):
            raise SignatureError("MESSAGE_ALTERED", "The message is not what was signed.")
        age = time.time() - float(stamp[TIME])
        if not -self._config.window_seconds <= age <= self._longest_wait:
            text = f"The message was signed {age:.0f} s ago; {self._longest_wait:g} s are allowed."
            raise SignatureError("MESSAGE_STALE", text)
        return stamp[NONCE]


def make_signer(config: SigningConfig, longest_wait: float) -> Signer | None:
    """Make a signer where there are keys."""
    return Signer(config, longest_wait) if config.keys else None


def _mac(key: bytes, stamp: Mapping[str, str], signed: Signed) -> str:
    mac = hmac.new(key, b"conductor task 1", hashlib.sha256)
    for part in (*(_bytes(stamp[name]) for name in (KEY, TIME, NONCE)), *signed.parts()):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.hexdigest()


def _is_added(name: str) -> bool:
    return name in SIGNING_HEADERS or name in _ADDED or name.startswith("x-")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
