"""A TCP proxy that can cut, refuse and fall silent, to have an outage of a broker one may not stop."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Forwards a port of its own to the server in `url`; `proxy.url` is the same URL through it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 0)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._forwards = asyncio.Event()
        self._forwards.set()
        self._last_words: bytes | None = None
        self.cut = asyncio.Event()
        self._held_words: bytes | None = None
        self.holds = asyncio.Event()
        self._released = asyncio.Event()
        self.on_port: Callable[[int], None] = lambda _: None
        """Called with the port from which a connection goes on, before anything goes that way."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        host = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self.url = urlunsplit(parts._replace(netloc=f"{host}127.0.0.1:{self._port}"))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def stop(self) -> None:
        """Cut all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._forwards.set()
        for writer in list(self._writers):
            writer.transport.abort()

    def fall_silent(self) -> None:
        """Keep and accept connections, and forward nothing any more."""
        self._forwards.clear()

    def cut_at(self, words: bytes) -> None:
        """Cut all connections, and refuse new ones, when the server sends `words`: nobody gets them.

        `cut` tells that it did; from `start` on `words` are nothing special any more.
        """
        self._last_words = words

    def hold(self, words: bytes) -> None:
        """Keep back what a client sends with `words` in it until `release`; `holds` tells that it did."""
        self._held_words = words

    def release(self) -> None:
        """Forward what is held, and hold no more."""
        self._held_words = None
        self._released.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            self.on_port(far_writer.get_extra_info("sockname")[1])
            await asyncio.gather(
                self._pump(reader, far_writer), self._pump(far_reader, writer, self._is_the_end)
            )
            self._writers.discard(far_writer)
        finally:
            self._writers.discard(writer)

    def _is_the_end(self, data: bytes) -> bool:
        return self._last_words is not None and self._last_words in data

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_the_end: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if is_the_end(data):
                    await self.stop()
                    self._last_words = None
                    self.cut.set()
                    return
                await self._forwards.wait()
                if self._held_words is not None and self._held_words in data:
                    self.holds.set()
                    await self._released.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
