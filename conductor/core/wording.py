"""Words that errors have in common."""

from collections.abc import Iterable
from difflib import get_close_matches

from conductor.core.exceptions import ConductorError


def error_text(error: BaseException) -> str:
    """What an error says; one that is none of ours with its type, for "'name'" alone is no message."""
    if isinstance(error, ConductorError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A question that ends an error message, or nothing."""
    close = get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {str(close[0])!r}?)" if close else ""
