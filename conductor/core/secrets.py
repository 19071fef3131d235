"""Passwords that this process was given, and how they are kept out of what it writes."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from conductor.core.urls import MASK, mask_text

#: Characters that a password needs to be hidden where it stands alone; a shorter one is part of many words.
SHORTEST = 6

_USERINFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?P<user>[^:@/]*):(?P<password>[^/]*)@")
_NAME = re.compile(r"password|passwd|secret|token", re.IGNORECASE)

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def remember_secrets(url: str | None) -> None:
    """Have `scrub` hide the passwords in a URL from now on, in this process; from any thread."""
    for secret in _secrets_of(url or ""):
        remember_secret(secret)


def remember_secret(secret: str) -> None:
    """Have `scrub` hide a secret from now on, also percent-encoded and as it stands in a repr."""
    global _pattern
    if len(secret) < SHORTEST or secret in _known:
        return
    _known.add(secret)
    forms = {form for each in tuple(_known) for form in _forms(each)}
    _pattern = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))


def scrub(text: str) -> str:
    """Hide in a text the secrets that are remembered, and the passwords of all URLs."""
    # The URL first: a password may have been quoted in another way than we know.
    text = mask_text(text)
    return text if _pattern is None else _pattern.sub(MASK, text)


def _secrets_of(url: str) -> set[str]:
    if "://" not in url:
        return set()
    found = {
        match["password"] for match in _USERINFO.finditer(url) if unquote(match["password"]) != match["user"]
    }
    try:
        query = urlsplit(url).query
    except ValueError:
        query = ""
    return {unquote(each) for each in found} | {
        value for name, value in parse_qsl(query) if _NAME.search(name)
    }


def _forms(secret: str) -> set[str]:
    plain, lower = quote(secret, safe=""), quote(secret)
    inside = repr(secret)[1:-1]
    return {secret, plain, lower, _small_hex(plain), inside, secret.replace("\\", "\\\\").replace('"', '\\"')}


def _small_hex(quoted: str) -> str:
    return re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
