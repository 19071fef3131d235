"""URLs of servers: checking them, and hiding their secrets."""

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
#: Schemes of servers whose databases have numbers.
_NUMBERED = ("redis", "rediss", "sentinel")
_NUMBER = re.compile(r"[0-9]+")
_PARTS = re.compile(r"[;,](?=[A-Za-z][A-Za-z0-9+.-]{0,64}://)")
_USERINFO = re.compile(r"^(?P<start>[A-Za-z][A-Za-z0-9+.-]*://[^:@/]*):.*@", re.DOTALL)
_SECRET_PARAMETER = re.compile(
    r"(?P<start>[?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE
)
_WORD = re.compile(r"\S+")
_SECRET_IN_TEXT = re.compile(
    r"""(?P<start>[?&][^=&\s"'<>?]{0,64}?(?:password|passwd|secret|token)[^=&\s"'<>]{0,64}=)[^&\s"'<>]*""",
    re.IGNORECASE,
)


def mask_url(url: str) -> str:
    """Hide the passwords of a URL, or of several joined by ";" or ","; text that is no URL stays as it is.

    Passwords that should have been percent-encoded are hidden as well, so in doubt too much is hidden.
    """
    if "://" not in url:
        return url
    pieces = _PARTS.split(url)
    separators = [*_PARTS.findall(url), ""]
    return "".join(_mask_one(piece) + separator for piece, separator in zip(pieces, separators, strict=True))


def mask_text(text: str) -> str:
    """Hide the passwords of all URLs in a text, as `mask_url` does; in doubt too much of a word is hidden."""
    if "://" not in text:
        return text
    if "@" in text:
        text = _WORD.sub(lambda word: _mask_word(word[0]), text)
    return _SECRET_IN_TEXT.sub(rf"\g<start>{MASK}", text)


def shown(value: object) -> str:
    """Write a value that somebody set, for an error message: its repr, with passwords in a URL masked."""
    return repr(mask_url(value) if isinstance(value, str) else value)


def without_parameters(url: str, is_ours: Callable[[str], bool]) -> str:
    """Give the URL without the parameters of which `is_ours` says so by their names."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if not is_ours(name)]
    return url if kept == pairs else urlunsplit(parts._replace(query=urlencode(kept)))


def _mask_one(url: str) -> str:
    url = _USERINFO.sub(rf"\g<start>:{MASK}@", url)
    return _SECRET_PARAMETER.sub(rf"\g<start>{MASK}", url)


def _mask_word(word: str) -> str:
    """Mask URLs in what has no blank, such as "url='redis://:secret@host/0'."; takes linear time."""
    if "://" not in word or "@" not in word:
        return word
    pieces = _PARTS.split(word)
    separators = [*_PARTS.findall(word), ""]
    return "".join(_mask_piece(piece) + end for piece, end in zip(pieces, separators, strict=True))


def _mask_piece(piece: str) -> str:
    scheme, separator, rest = piece.partition("://")
    info, at, host = rest.rpartition("@")
    user, colon, _ = info.partition(":")
    return f"{scheme}{separator}{user}:{MASK}{at}{host}" if at and colon and "/" not in user else piece


def check_url(url: str) -> str:
    """Give `url` back if it has a scheme, something behind it and no password in pieces, else ValueError."""
    scheme, separator, rest = url.partition("://")
    if separator and _SCHEME.fullmatch(scheme) and (rest or scheme == "memory"):
        if scheme != "unix" and any(map(_is_in_pieces, _PARTS.split(url))):
            raise ValueError(
                f"{mask_url(url)!r} cannot be read: a port is a number, and what is no letter or digit in "
                "a password is percent-encoded, '@' as '%40' and '/' as '%2F'"
            )
        for piece in _PARTS.split(url):
            database = urlsplit(piece).path.strip("/")
            if urlsplit(piece).scheme in _NUMBERED and database and not _NUMBER.fullmatch(database):
                raise ValueError(
                    f"{mask_url(url)!r} names the database {database!r}: write its number, as in "
                    "'redis://localhost:6379/0'"
                )
        return url
    # In what is no URL a password is not to be recognised, so all that may hold one goes.
    shown = re.sub(r".*@", f"{MASK}@", url, flags=re.DOTALL)
    raise ValueError(f"{shown!r} is not a URL; write for example 'redis://localhost:6379/0'")


def _is_in_pieces(url: str) -> bool:
    """Whether a part of a password would be taken for host, port or path, and be shown as that."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises
    except ValueError:
        return True
    return "@" in parts.path + parts.fragment + parts.query.partition("=")[0]
