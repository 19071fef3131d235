"""Passwords that this process was given, and how they are kept out of what it writes."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

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
    _pattern = re.compile("|".join(map(_anyhow, sorted(_known, key=len, reverse=True))))


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


def _anyhow(secret: str) -> str:
    """Give a pattern of a secret as it is, percent-encoded, or in a repr or JSON, however deep."""
    runs = re.findall(r"\\+|[^\\]", secret)
    return "".join(run if run.isascii() and run.isalnum() else _escaped(run) for run in runs)


def _escaped(run: str) -> str:
    """Give a pattern of one character, or of backslashes; a repr of a repr doubles those."""
    quoted = "".join(rf"%(?:25)*(?i:{byte:02x})" for byte in run.encode("utf-8", "surrogatepass"))
    if run.startswith("\\"):
        return rf"(?:\\{{1,64}}|{quoted})"
    ways = [rf"\\{{0,64}}{re.escape(run)}", quoted]
    if (escaped := ascii(run)[1:-1]) != run:
        ways.append(rf"\\{{1,64}}{escaped[1:]}")
    if not run.isascii():
        units = run.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
        ways.append("".join(rf"\\{{1,64}}u(?i:{unit})" for unit in units))
    return f"(?:{'|'.join([*ways, '[+]'] if run == ' ' else ways)})"
