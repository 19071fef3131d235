"""Where a Redis server is, read from its URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.connection import parse_url

from conductor.core.exceptions import ConfigurationError, StateError
from conductor.core.secrets import remember_secrets
from conductor.core.tls import make_context, read_tls
from conductor.core.urls import mask_url

if TYPE_CHECKING:
    import ssl

SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True)
class Endpoint:
    """A server's address and the credentials for it; `shown` is its URL without the password."""

    shown: str
    host: str | None
    port: int
    path: str | None
    database: int
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)


def read_url(url: str) -> Endpoint:
    """Read redis://, rediss:// and unix:// URLs; StateError STATE_BAD_URL with the reason."""
    shown = _without_secrets(url)
    if isinstance(url, str):
        remember_secrets(url)
    try:
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise ValueError(f"the scheme is none of {', '.join(SCHEMES)}")
        tls = read_tls(url)
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        if scheme == "unix" and not options.get("path"):
            raise ValueError("the path of the socket is missing")
        database = _database(url, options)
        return Endpoint(
            shown=shown,
            host=None if scheme == "unix" else options.get("host") or "localhost",
            port=int(options.get("port") or 6379),
            path=options.get("path"),
            database=database,
            username=options.get("username"),
            password=options.get("password"),
            tls=None if tls is None else make_context(tls),
        )
    except (ConfigurationError, ValueError, TypeError, AttributeError, OSError) as error:
        raise bad_url(shown, str(error)) from None


def _without_secrets(url: object) -> str:
    if not isinstance(url, str):
        return f"a {type(url).__name__}"
    # In what is no URL a password is not to be recognised, so all that may hold one goes.
    return mask_url(url) if "://" in url else repr(re.sub(r".*@", "***@", url, flags=re.DOTALL))


def bad_url(shown: str, reason: str) -> StateError:
    """Make the error of a URL that cannot be used."""
    return StateError(
        f"{shown} is not the URL of a Redis server: {reason}. Write for example redis://localhost:6379/0, "
        "rediss://:password@host:6380/0 or unix:///run/redis.sock?db=0",
        "STATE_BAD_URL",
        {"url": shown},
    )


def _database(url: str, options: dict[str, Any]) -> int:
    path = urlsplit(url).path.strip("/")
    if "db" not in options and options.get("path") is None and path:
        raise ValueError(f"the database {path!r} is not a number")
    database = int(options.get("db") or 0)
    if database < 0:
        raise ValueError(f"the database {database} is not a number of 0 or more")
    return database
