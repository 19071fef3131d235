"""The rights that docs/security.md lists, given to users as its commands do, and what users make of them."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
#: In place of `$NODE` and the like in the commands.
PASSWORD = "a-password-of-a-role"


def login(url: str, user: str) -> str:
    """The URL with another user, whose password is PASSWORD."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{PASSWORD}@{parts.hostname}:{parts.port}"))


@dataclass
class Rights:
    """By user: words of ACL SETUSER, each list for one command; and what set_permissions takes."""

    store: dict[str, list[str]] = field(default_factory=dict)
    broker: dict[str, list[str]] = field(default_factory=dict)
    rabbitmq: dict[str, list[str]] = field(default_factory=dict)


def rights_on(page: Path = PAGE) -> Rights:
    """Read the commands in the fenced blocks of the page."""
    found = Rights()
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            match shlex.split(line, comments=True):
                case ["redis-cli", "ACL", "SETUSER", user, "reset", *rules]:
                    found.store[user] = ["reset", *map(_with_password, rules)]
                case ["redis-cli", "ACL", "SETUSER", user, *rules]:
                    found.broker.setdefault(user, []).extend(rules)
                case ["rabbitmqctl", "set_permissions", "-p", "conductor", user, *patterns]:
                    assert len(patterns) == 3, line
                    found.rabbitmq[user] = patterns
    return found


def _with_password(rule: str) -> str:
    return f">{PASSWORD}" if rule.startswith(">$") else rule


def commands(rules: Iterable[str]) -> set[str]:
    """The commands that rules allow."""
    words = [word for rule in rules for word in rule.strip("()").split()]
    return {word[1:] for word in words if word.startswith("+")}
