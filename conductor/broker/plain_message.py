"""Messages whose bodies are taken as they came."""

from __future__ import annotations

import sys
from typing import Any

from kombu.exceptions import DecodeError
from kombu.message import Message

#: What reading a message raises because of what is in it.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class PlainMessage(Message):  # type: ignore[misc]
    """Refuses a compressed body; kombu 5.7 unpacks one, however large that gets, before anybody looks at it.

    Stands behind a transport's own class of messages in the order of bases.
    """

    def __init__(self, *arguments: Any, headers: dict[str, Any] | None = None, **options: Any) -> None:
        found = headers or {}
        plain = {name: value for name, value in found.items() if name != "compression"}
        super().__init__(*arguments, headers=plain, **options)
        self.headers = found
        if found.get("compression"):
            try:
                raise DecodeError("compressed messages are refused")
            except DecodeError:
                self.errors.append(sys.exc_info())
