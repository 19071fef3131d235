"""URLs of servers: checking them, and hiding their secrets."""

import re

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_PARTS = re.compile(r"[;,](?=[A-Za-z][A-Za-z0-9+.-]*://)")
_USERINFO = re.compile(r"^(?P<start>[A-Za-z][A-Za-z0-9+.-]*://[^:@/]*):.*@", re.DOTALL)
_SECRET_PARAMETER = re.compile(
    r"(?P<start>[?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", re.IGNORECASE
)
# Bounded, for a text may be hostile: each "://" in it is looked at once, up to the limit.
_USERINFO_IN_TEXT = re.compile(r"""(?P<start>://[^:@/\s"'<>]{0,256}):[^\s"'<>]{0,1024}@""")
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
    text = _USERINFO_IN_TEXT.sub(rf"\g<start>:{MASK}@", text)
    return _SECRET_IN_TEXT.sub(rf"\g<start>{MASK}", text)


def shown(value: object) -> str:
    """Write a value that somebody set, for an error message: its repr, with passwords in a URL masked."""
    return repr(mask_url(value) if isinstance(value, str) else value)


def _mask_one(url: str) -> str:
    url = _USERINFO.sub(rf"\g<start>:{MASK}@", url)
    return _SECRET_PARAMETER.sub(rf"\g<start>{MASK}", url)


def check_url(url: str) -> str:
    """Give `url` back if it has a scheme and something behind it, else raise ValueError."""
    scheme, separator, rest = url.partition("://")
    if separator and _SCHEME.fullmatch(scheme) and (rest or scheme == "memory"):
        return url
    # In what is no URL a password is not to be recognised, so all that may hold one goes.
    shown = re.sub(r".*@", f"{MASK}@", url, flags=re.DOTALL)
    raise ValueError(f"{shown!r} is not a URL; write for example 'redis://localhost:6379/0'")
