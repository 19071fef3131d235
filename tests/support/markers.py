"""Passwords that can be found again wherever they are shown, however they are written there."""

import base64
import binascii
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress

_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")


class Marker:
    """A word with all that is encoded in URLs, in repr and in JSON, and a core that never is.

    The core stands at its beginning, in its middle and at its end, so that half of it is found too.
    """

    def __init__(self) -> None:
        self.core = f"zq{uuid.uuid4().hex[:10]}"
        self.text = f"{self.core} p@s:{self.core}/%41?#&=\"quo\\te'+{self.core}"

    def found_in(self, text: str) -> str:
        """Give what surrounds the marker in a text, also base64 in it; empty where it is not there."""
        for layer in _layers(text):
            at = layer.lower().find(self.core)
            if at >= 0:
                return f"...{layer[max(0, at - 300) : at + 100]}..."
        return ""


def _layers(text: str, depth: int = 2) -> Iterator[str]:
    """The text, and what is encoded with base64 in it, as kombu does with the bodies of messages."""
    yield text
    if depth:
        for piece in set(_BASE64.findall(text)):
            with suppress(binascii.Error, UnicodeDecodeError):
                yield from _layers(base64.b64decode(piece, validate=True).decode(), depth - 1)
