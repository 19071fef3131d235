"""What a server's errors mean for the caller."""

from __future__ import annotations

import re
from typing import Any

from conductor.core.exceptions import StateError
from conductor.core.rights import missing_in_redis
from conductor.core.tls import explain_tls
from conductor.store.endpoint import Endpoint, bad_url

# Redis before 7 wraps the error of a command that a script called, some of them twice.
_WRAPPED = re.compile(r".*@user_script: ?\d+: -?(.*)", re.DOTALL)


class ReplyError(Exception):
    """An error that the server replied; its first word is the server's code for it."""

    def __init__(self, reply: str) -> None:
        wrapped = _WRAPPED.fullmatch(reply)
        super().__init__(wrapped.group(1) if wrapped else reply)

    @property
    def word(self) -> str:
        """The first word of the reply, such as NOSCRIPT."""
        return str(self).partition(" ")[0]


class ConnectionLostError(Exception):
    """The connection ended before the reply came; the command may have been carried out or not."""


_HINTS = {
    "OOM": (
        "STATE_FULL",
        "the Redis server {url} is full ({reply}): raise its maxmemory, delete data, or let results expire",
    ),
    "READONLY": (
        "STATE_READ_ONLY",
        "the Redis server {url} is a read-only replica ({reply}): use the URL of its primary",
    ),
    "MISCONF": (
        "STATE_READ_ONLY",
        "the Redis server {url} refuses to write because it cannot save its data to disk ({reply})",
    ),
    "WRONGTYPE": (
        "STATE_CORRUPT",
        "{key} is damaged: it is not a hash. Repair or delete the key.",
    ),
}
_AUTH_WORDS = frozenset({"NOAUTH", "WRONGPASS"})
#: Replies of a server that is about to serve again.
PASSING_WORDS = frozenset({"LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN"})


def state_error(error: ReplyError, endpoint: Endpoint, key: str = "") -> StateError:
    """Return the StateError for an error reply; `key` is the one that the command was about."""
    word, reply = error.word, str(error)
    details: dict[str, Any] = {"url": endpoint.shown, "reply": reply}
    if word in _HINTS:
        code, sentence = _HINTS[word]
        if code == "STATE_CORRUPT":
            details |= {"key": key or "?", "field": "*"}
        return StateError(sentence.format(url=endpoint.shown, reply=reply, key=key or "?"), code, details)
    if missing := missing_in_redis(reply, key):
        sentence = f"the Redis server {endpoint.shown} refuses ({reply}): {missing}"
        return StateError(sentence, "STATE_FORBIDDEN", details)
    if word in _AUTH_WORDS or "AUTH" in reply.upper() or "invalid username-password" in reply:
        return auth_failed(endpoint, reply)
    if word in PASSING_WORDS:
        return unavailable(endpoint, reply)
    if "DB index" in reply or "SELECT is not allowed" in reply:
        return bad_url(endpoint.shown, f"the server says {reply!r}")
    return StateError(f"the Redis server {endpoint.shown} replied: {reply}", "STATE_ERROR", details)


def auth_failed(endpoint: Endpoint, reply: str) -> StateError:
    """Make the error of credentials that do not do."""
    what = "the user name and password" if endpoint.password else "no password, but one is needed"
    return StateError(
        f"the Redis server {endpoint.shown} did not accept {what} ({reply}): write them into the URL, as in "
        "redis://:password@host:6379/0 or redis://user:password@host:6379/0",
        "STATE_AUTH_FAILED",
        {"url": endpoint.shown, "reply": reply},
    )


def unavailable(endpoint: Endpoint, reason: str, cause: BaseException | None = None) -> StateError:
    """Make the error of a server that cannot be talked to; what `cause` tells of TLS goes before `reason`."""
    if trouble := explain_tls(cause, endpoint.shown):
        return StateError(
            f"the Redis server {endpoint.shown} cannot be used: {trouble}",
            "STATE_UNAVAILABLE",
            {"url": endpoint.shown, "reason": reason},
        )
    return StateError(
        f"the Redis server {endpoint.shown} cannot be reached: {reason or 'no reason given'}. Is it running, "
        "and are host and port right?",
        "STATE_UNAVAILABLE",
        {"url": endpoint.shown, "reason": reason},
    )
