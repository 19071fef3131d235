"""One connection to a Redis server, shared by any number of coroutines.

Replies come in the order of the commands, so commands that are under way at the same time need no connection
of their own: what is written in one turn of the event loop goes out together, as a pipeline. That also makes
a lone command cheap: there is no task, lock, pool or stream between the caller and the socket.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis

from conductor.store.failures import ConnectionLostError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor.store.endpoint import Endpoint

_INCOMPLETE = object()


class Wire(asyncio.Protocol):
    """A connection; every method belongs to its event loop.

    Args:
        reply_timeout: seconds without any reply after which the connection is given up.
        on_push: called with every reply that no command asked for, as a subscription brings.
        on_lost: called once when the connection has ended.
    """

    def __init__(
        self,
        reply_timeout: float,
        on_push: Callable[[Any], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reply_timeout = reply_timeout
        self._on_push, self._on_lost = on_push, on_lost
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reason = "the connection was closed by the server"
        self._ended = self._loop.create_future()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Hand out the replies; called by the event loop."""
        self._heard = self._loop.time()
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _INCOMPLETE:
                if not waiting:
                    if self._on_push is not None:
                        self._on_push(reply)
                    continue
                future = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"that is not a Redis server: {error}")

    def pause_writing(self) -> None:
        """Stop taking commands while the server does not read them; called by the event loop."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Take commands again; called by the event loop."""
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is under way; called by the event loop."""
        self.lost = True
        self._writable.set()
        if self._timer is not None:
            self._timer.cancel()
        reason = str(error) if error is not None else self._reason
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                lost = ConnectionLostError(reason)
                lost.__cause__ = error
                future.set_exception(lost)
        self._ended.set_result(None)
        if self._on_lost is not None:
            self._on_lost()

    async def send(self, command: Sequence[Any]) -> Any:
        """Send a command and return its reply, an error reply included, as a value.

        Raises ConnectionLostError.
        """
        if not self._writable.is_set():
            await self._writable.wait()
        if self.lost:
            raise ConnectionLostError(self._reason)
        future = self._loop.create_future()
        self._write(hiredis.pack_command(tuple(command)))
        self._waiting.append(future)
        return await future

    async def send_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands as one pipeline and return their replies; as `send` does, with no task for each."""
        if not commands:
            return []
        if not self._writable.is_set():
            await self._writable.wait()
        if self.lost:
            raise ConnectionLostError(self._reason)
        futures = [self._loop.create_future() for _ in commands]
        self._write(b"".join([hiredis.pack_command(tuple(command)) for command in commands]))
        self._waiting.extend(futures)
        try:
            await futures[-1]
        except (ConnectionLostError, asyncio.CancelledError):
            for future in futures:
                # Nobody asks for the others any more.
                if not future.cancel() and not future.cancelled():
                    future.exception()
            raise
        return [future.result() for future in futures]

    def post(self, command: Sequence[Any]) -> None:
        """Send a command whose reply is a push, such as SUBSCRIBE."""
        self._write(hiredis.pack_command(tuple(command)))

    def _write(self, data: bytes) -> None:
        if self._timer is None:
            self._heard = self._loop.time()
            self._timer = self._loop.call_later(self._reply_timeout, self._check)
        if self._unsent:
            self._unsent.append(data)
        elif self._waiting:
            # Others are under way, so more may come in this turn of the loop: collect them.
            self._unsent.append(data)
            self._loop.call_soon(self._flush)
        elif self._transport is not None:
            self._transport.write(data)

    def _flush(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    def _check(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        due = self._heard + self._reply_timeout
        if self._loop.time() >= due:
            self.abort(f"no reply for {self._reply_timeout:g} s")
        else:
            self._timer = self._loop.call_at(due, self._check)

    def abort(self, reason: str) -> None:
        """End the connection at once; what is under way fails for that reason."""
        self._reason = reason
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """End the connection and return when it has ended."""
        self._reason = "the state manager was disconnected"
        if self._transport is not None:
            self._transport.abort()
            await asyncio.shield(self._ended)


async def open_wire(
    endpoint: Endpoint,
    connect_timeout: float,
    reply_timeout: float,
    *,
    on_push: Callable[[Any], None] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> Wire:
    """Connect, log in and choose the database.

    Raises ConnectionLostError or OSError where the server cannot be reached, ReplyError where it refuses.
    """
    loop = asyncio.get_running_loop()

    def make() -> Wire:
        return Wire(reply_timeout, on_push, on_lost)

    async with asyncio.timeout(connect_timeout):
        if endpoint.path is not None:
            _, wire = await loop.create_unix_connection(make, endpoint.path)
        else:
            server_hostname = endpoint.host if endpoint.tls is not None else None
            _, wire = await loop.create_connection(
                make, endpoint.host or "", endpoint.port, ssl=endpoint.tls, server_hostname=server_hostname
            )
        try:
            await _log_in(wire, endpoint)
        except BaseException:
            wire.abort("logging in failed")
            raise
    return wire


async def _log_in(wire: Wire, endpoint: Endpoint) -> None:
    commands: list[list[str | int]] = []
    if endpoint.password is not None:
        username = [endpoint.username] if endpoint.username else []
        commands.append(["AUTH", *username, endpoint.password])
    if endpoint.database:
        commands.append(["SELECT", endpoint.database])
    commands.append(["PING"])
    for reply in await wire.send_all(commands):
        if isinstance(reply, ReplyError):
            raise reply
