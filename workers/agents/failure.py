"""The one way for a tool's failure to become a sentence in a task's result."""

from typing import Any

MESSAGE_LIMIT = 2000


class WorkFailedError(Exception):
    """The work did not succeed; `str()` is for a person, `output` is what is known all the same."""

    def __init__(self, message: str, output: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.output = output or {}


def last_lines(text: str, count: int = 8) -> str:
    """The last lines of a tool's output that say something, at most MESSAGE_LIMIT characters."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:])[-MESSAGE_LIMIT:]
