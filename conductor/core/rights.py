"""Rights that a user lacks, as the errors of servers tell of them."""

from __future__ import annotations

import re

#: Where the rights are listed that a user has to have.
PAGE = "docs/security.md"

# Redis 6 and 7, Valkey, and both where a script ran the command.
_REDIS = re.compile(r"NOPERM |.*?\b(?:ACL failure in script: |has no permissions to |No permissions to )")
_COMMAND = re.compile(r"run the '([^']+)' command")
_CHANNEL = re.compile(r"access (?:a|the|one of the) ?'?([^' ]*)'? ?channels?")
_KEY = re.compile(r"access (?:a|the|one of the) ?'?([^' ]*)'? ?keys?")
_RABBITMQ = re.compile(
    r"(?:([A-Z]\w+\.[a-z_]\w*): )?.*?((?:configure |write |read )?)access to (\w+) '([^']*)'"
    r"(?: in vhost '([^']*)')? refused for user '([^']*)'",
    re.DOTALL,
)
_NEEDED = {
    "Exchange.declare": "configure",
    "Exchange.delete": "configure",
    "Queue.declare": "configure",
    "Queue.delete": "configure",
    "Basic.publish": "write",
    "Basic.consume": "read",
    "Basic.get": "read",
    "Queue.purge": "read",
}


def missing_in_redis(reply: str, about: str = "") -> str | None:
    """Say which right a reply of Redis or Valkey misses, and how to grant it; None for any other reply.

    `about`: the key or channel that the command was about, for servers that do not name it.
    """
    if not _REDIS.match(reply):
        return None
    if found := _COMMAND.search(reply):
        return f"its user may not run the command {found[1]!r}: grant it +{found[1]}, see {PAGE}"
    for what, sign, pattern in (("channel", "&", _CHANNEL), ("key", "~", _KEY)):
        if found := pattern.search(reply):
            named = f"the {what} {found[1] or about!r}" if found[1] or about else f"a {what}"
            if not found[1] and what == "key":
                # A script may use others than the one it is about.
                named += f"{', or another' if about else ''} that ACL LOG on the server names"
            return f"its user may not use {named}: grant it a pattern that covers it ({sign}...), see {PAGE}"
    return f"its user lacks a right, which ACL LOG on the server names: grant it, see {PAGE}"


def missing_in_rabbitmq(text: str) -> str | None:
    """The same of an error of RabbitMQ, which begins with the AMQP method."""
    found = _RABBITMQ.search(text)
    if found is None:
        return None
    method, named, kind, name, vhost, user = found.groups()
    if kind == "vhost":
        return (
            f"user {user!r} has no rights in virtual host {name!r}: grant them with rabbitmqctl "
            f"set_permissions, see {PAGE}"
        )
    right = named.strip() or _NEEDED.get(method or "", "")
    if method == "Queue.bind" and not named:
        right = "write" if kind == "queue" else "read"
    return (
        f"user {user!r} has no right to {right or 'use'} {kind} {name!r} in virtual host {vhost!r}: grant it "
        f"with rabbitmqctl set_permissions, see {PAGE}"
    )
