"""Words that errors have in common."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A question that ends an error message, or nothing."""
    close = get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {str(close[0])!r}?)" if close else ""
