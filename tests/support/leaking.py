"""An agent that shows its passwords as careless libraries do, and servers that have passwords."""

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import redis

from conductor.broker.addresses import Addresses
from conductor.store.embedded import EmbeddedServer
from tests.support import rabbitmq
from tests.support.markers import Marker

AGENTS = """
import json
import logging
import os
from urllib.parse import quote, unquote

from conductor import ConductorError, agent

logger = logging.getLogger("careless")


def secrets():
    urls = [os.environ["CONDUCTOR_BROKER_URL"], json.loads(os.environ["CONDUCTOR_REDIS"])["url"]]
    words = [unquote(url.partition("//")[2].rpartition("@")[0].partition(":")[2]) for url in urls]
    return [*urls, *words, *map(repr, words), *map(json.dumps, words), *map(quote, words)]


class Client:
    def __repr__(self):
        return f"Client({secrets()!r})"


@agent("coding")
async def careless(data: dict) -> dict:
    do, say = data.get("do"), data.get("say", "")
    shown = " | ".join([*secrets(), repr(secrets()), say])
    logger.warning("working with %s", shown)
    logger.warning("working with %r", Client(), extra={"secrets": secrets(), "said": say})
    if do == "fail":
        try:
            raise ConnectionError(f"no answer from {shown}")
        except ConnectionError as error:
            logger.exception("it failed")
            raise RuntimeError(shown, Client()) from error
    if do == "retry":
        raise ConductorError(shown, "TRANSIENT_ERROR", {"said": shown, "secrets": secrets()})
    return {"said": say}
"""


class Guarded:
    """Servers that let in only who knows the markers."""

    def __init__(self, addresses: Addresses, server: EmbeddedServer, user: str | None) -> None:
        self.addresses = addresses
        self._server = server
        self._user = user

    def refuse(self) -> None:
        """Change the passwords, and end all connections."""
        with redis.Redis.from_url(self.addresses.redis_url) as client:
            client.config_set("requirepass", uuid.uuid4().hex)
            client.client_kill_filter(_type="normal", skipme=False)
        if self._user is not None:
            rabbitmq.refuse(self._user)

    def stop(self) -> None:
        """End what is the test's own."""
        self._server.stop()


@contextmanager
def guarded(kind: str, directory: Path, marker: Marker, other: Marker) -> Iterator[Guarded]:
    """A Valkey whose password is a marker, with a RabbitMQ user whose password is another beside it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(directory, settings={"requirepass": marker.text}))
        if kind == "valkey":
            yield Guarded(Addresses(server.url, server.url), server, None)
            return
        user, url = f"guarded-{uuid.uuid4().hex[:8]}", stack.enter_context(rabbitmq.virtual_host())
        stack.enter_context(rabbitmq.user(user, other.text, url, ".*", ".*", ".*"))
        broker = url.replace("guest:guest", f"{user}:{quote(other.text, safe='')}")
        yield Guarded(Addresses(broker, server.url), server, user)
