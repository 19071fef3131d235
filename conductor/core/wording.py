"""Words that errors have in common."""

from collections.abc import Iterable
from difflib import get_close_matches
from traceback import format_exception

from conductor.core.exceptions import ConductorError
from conductor.core.secrets import scrub


def error_text(error: BaseException) -> str:
    """What an error says, without secrets; with its type if not ours, for "'name'" alone is no message."""
    if isinstance(error, ConductorError):
        return scrub(str(error))
    return scrub(f"{type(error).__name__}: {error}") if str(error) else type(error).__name__


def traceback_text(error: BaseException) -> str:
    """The traceback of an error, without secrets."""
    return scrub("".join(format_exception(error)))


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A question that ends an error message, or nothing."""
    close = get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {str(close[0])!r}?)" if close else ""
