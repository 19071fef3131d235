"""What each user does on a Valkey, also within scripts, and what it was denied."""

import asyncio
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Self

import redis

from tests.support.proxy import Proxy

_LINE = re.compile(rb'[\d.]+ \[\d+ (.*?)\] "(.*?)"(?: "(.*?)")?', re.DOTALL)
#: Commands whose subcommands have rights of their own.
_WITH_SUBCOMMANDS = {"acl", "client", "config", "pubsub", "script"}
_END = b"that-was-all"


class Observed:
    """A Valkey that users reach through doors of their own, so that it is known whose connection is whose."""

    def __init__(self, url: str) -> None:
        self.admin = redis.Redis.from_url(url)
        self.admin.config_set("acllog-max-len", 10_000)
        self.used: dict[str, set[str]] = defaultdict(set)
        """Commands by user."""
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._doors: list[Proxy] = []
        self._users: dict[int, str] = {}
        self._monitor = redis.Redis.from_url(url).connection_pool.get_connection()
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._loop.run_forever, self._read)
        ]

    def __enter__(self) -> Self:
        self._monitor.send_command("MONITOR")
        self._monitor.read_response()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for door in self._doors:
            self._await(door.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.read_all()
        self._threads[0].join()

    def door(self, user: str) -> str:
        """The URL by which a user has to come."""
        proxy = Proxy(self._url)
        proxy.on_port = lambda port: self._users.update({port: user})
        self._doors.append(proxy)
        self._await(proxy.start())
        return proxy.url

    def _await(self, action: Any) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(30)

    def read_all(self) -> None:
        """Return when all that was done up to now is in `used`."""
        if self._threads[1].is_alive():
            self.admin.echo(_END)
            self._threads[1].join(60)

    def denied(self) -> Iterator[tuple[str, str]]:
        """The users that were refused something, each with the name of the command, key or channel."""
        for entry in self.admin.acl_log(10_000):  # type: ignore[no-untyped-call]
            yield _text(entry["username"]), _text(entry["object"])

    def _read(self) -> None:
        user = ""
        while True:
            line = self._monitor.read_response(timeout=3600)
            whose, command, argument = _LINE.match(line).groups()  # type: ignore[union-attr]
            if whose != b"lua":
                user = self._users.get(int(whose.rpartition(b":")[2]), "")
            name = command.decode().lower()
            if name == "echo" and argument == _END:
                return
            if name in _WITH_SUBCOMMANDS and argument is not None:
                name += f"|{argument.decode().lower()}"
            self.used[user].add(name)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
