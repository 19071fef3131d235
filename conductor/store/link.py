"""The way to a Redis server that mends itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any

from conductor.core.exceptions import StateError
from conductor.orchestration.state_checks import not_connected
from conductor.store.failures import PASSING_WORDS, ConnectionLostError, ReplyError, state_error, unavailable
from conductor.store.scripts import all_scripts
from conductor.store.wire import Wire, open_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor.store.endpoint import Endpoint

logger = logging.getLogger(__name__)

_CURES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


class Link:
    """One connection to a server, opened again when it was lost; every method belongs to one event loop.

    Args:
        connect_timeout: seconds for one attempt to connect.
        reply_timeout: seconds without any reply after which a connection is given up.
        retry_seconds: how long a command waits for a server that is away, before STATE_UNAVAILABLE.
    """

    def __init__(
        self, endpoint: Endpoint, connect_timeout: float, reply_timeout: float, retry_seconds: float
    ) -> None:
        self.endpoint = endpoint
        self._connect_timeout, self._reply_timeout = connect_timeout, reply_timeout
        self._retry_seconds = retry_seconds
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire] | None = None
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether `open` was called and `close` was not."""
        return self._open

    async def open(self) -> None:
        """Connect; does not wait for a server that is away: StateError."""
        if not self._open:
            self._wire = await self._attempt()
            self._open = True

    async def close(self) -> None:
        """End the connection; what is under way fails with STATE_NOT_CONNECTED."""
        self._open = False
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError, StateError):
                await opening
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def run(self, command: Sequence[Any], key: bytes | str = "", *, again: bool = True) -> Any:
        """Send a command and return its reply.

        With `again` it is sent once more where the connection was lost before the reply; without, that is
        STATE_UNAVAILABLE, as it may have been carried out. Replies whose first word is the business of the
        caller (a script's own errors) are raised as ReplyError, others as StateError about `key`.
        """
        cures = 0
        while True:
            wire = self._wire
            if wire is None or wire.lost:
                wire = await self._reopened()
            try:
                reply = await wire.send(command)
            except ConnectionLostError as error:
                if not self._open:
                    raise not_connected() from None
                if not again:
                    raise self._maybe_done(error) from error
                again = False
                continue
            if not isinstance(reply, ReplyError):
                return reply
            cures += 1
            if cures > _CURES or not await self._cured(wire, reply):
                raise reply if reply.word in _SCRIPT_WORDS else self.failure(reply, key)

    async def _cured(self, wire: Wire, reply: ReplyError) -> bool:
        """Do what makes a refused command worth sending again."""
        if reply.word == "NOSCRIPT":
            await _load_scripts(wire)
            return True
        if reply.word == "LOADING":
            wire.abort("the server is loading its data")
            return True
        return False

    async def run_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands that may run twice as one pipeline and return the replies, ReplyErrors among them."""
        again = True
        while True:
            wire = self._wire
            if wire is None or wire.lost:
                wire = await self._reopened()
            try:
                return await wire.send_all(commands)
            except ConnectionLostError as error:
                if not self._open:
                    raise not_connected() from None
                if not again:
                    raise unavailable(self.endpoint, str(error), error) from error
                again = False

    def failure(self, reply: ReplyError, key: bytes | str) -> StateError:
        """Return the StateError for an error reply to a command about `key`."""
        shown = key.decode(errors="replace") if isinstance(key, bytes) else key
        return state_error(reply, self.endpoint, shown)

    def _maybe_done(self, error: ConnectionLostError) -> StateError:
        failure = unavailable(self.endpoint, f"{error}; the change may have been made or not")
        failure.details["maybe_done"] = True
        return failure

    async def _reopened(self) -> Wire:
        if not self._open:
            raise not_connected()
        if self._opening is None:
            self._opening = asyncio.create_task(self._reopen())
            self._opening.add_done_callback(self._forget_opening)
        try:
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if not self._open:
                raise not_connected() from None
            raise

    def _forget_opening(self, task: asyncio.Task[Wire]) -> None:
        if self._opening is task:
            self._opening = None
        if not task.cancelled():
            task.exception()

    async def _reopen(self) -> Wire:
        """Try to connect, again and again, for as long as a command may wait."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._retry_seconds, _FIRST_PAUSE
        logger.info("state: connecting again to %s", self.endpoint.shown)
        while True:
            try:
                self._wire = await self._attempt()
            except StateError as error:
                if error.error_code != "STATE_UNAVAILABLE" or loop.time() + pause > deadline:
                    raise
            else:
                return self._wire
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(self) -> Wire:
        wire = await self.dedicated()
        await _load_scripts(wire)
        return wire

    async def dedicated(
        self, on_push: Callable[[Any], None] | None = None, on_lost: Callable[[], None] | None = None
    ) -> Wire:
        """Open a connection of the caller's own; StateError. The caller closes it."""
        try:
            return await open_wire(
                self.endpoint, self._connect_timeout, self._reply_timeout, on_push=on_push, on_lost=on_lost
            )
        except ReplyError as error:
            raise state_error(error, self.endpoint) from None
        except TimeoutError:
            raise unavailable(self.endpoint, f"no answer within {self._connect_timeout:g} s") from None
        except (ConnectionLostError, OSError) as error:
            raise unavailable(self.endpoint, str(error), error) from error


# What scripts reply on purpose; see the Lua files.
_SCRIPT_WORDS = frozenset({"CONFLICT", "STALE", "DAMAGED", "NEGATIVE"})


async def _load_scripts(wire: Wire) -> None:
    for reply in await wire.send_all([("SCRIPT", "LOAD", script.source) for script in all_scripts()]):
        if isinstance(reply, ReplyError) and reply.word not in PASSING_WORDS:
            logger.warning("state: a script could not be loaded: %s", reply)
