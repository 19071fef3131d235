"""Tasks are taken from lists of Redis or Valkey, and noted as taken, in one step."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from conductor.broker.results import script

logger = logging.getLogger(__name__)

#: Seconds that the server may take to answer; then the connection is taken for broken.
PATIENCE = 10.0


class Taker:
    """Takes messages over one connection, which becomes readable when there may be new ones."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pings = 0
        self._source = script("take_task")
        self._digest = hashlib.sha1(self._source.encode()).hexdigest()  # noqa: S324 - what Redis calls it by
        try:
            self._do("CLIENT", "TRACKING", "ON")
        except ResponseError as error:
            logger.warning(
                "The server does not tell when tasks come (%s): they are looked for every `restore_interval`",
                error,
            )

    def take(self, *arguments: Any) -> Any:
        """Run the script."""
        try:
            return self._do("EVALSHA", self._digest, *arguments)
        except NoScriptError:
            return self._do("EVAL", self._source, *arguments)

    def ping(self) -> None:
        """Have the connection become readable."""
        self._connection.send_command("PING", check_health=False)
        self._pings += 1

    def drain(self) -> bool:
        """Read what came; tells whether it was anything."""
        came = False
        while self._connection.can_read(0):
            self._read(push_request=True)
            came = True
        return came

    def _do(self, *command: Any) -> Any:
        if not self._connection.is_connected:
            # It would connect by itself, and nobody would tell it of changes.
            raise RedisConnectionError("the connection for taking tasks is closed")
        while self._pings:
            self._read()
        self._connection.send_command(*command, check_health=False)
        return self._connection.read_response(timeout=PATIENCE)

    def _read(self, *, push_request: bool = False) -> None:
        if self._connection.read_response(timeout=PATIENCE, push_request=push_request) == b"PONG":
            self._pings -= 1
