"""Watching agent states over Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from conductor.core.exceptions import StateError
from conductor.orchestration.state_checks import not_connected
from conductor.orchestration.state_kinds import AGENT
from conductor.orchestration.state_watch import AgentStateChange, AgentStateWatch
from conductor.store.failures import ReplyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conductor.store.link import Link
    from conductor.store.wire import Wire

logger = logging.getLogger(__name__)

#: Seconds of silence after which the connection is tested.
SILENCE = 10.0
_PAUSE = 0.5

Versions = dict[str, int]


class _Inbox:
    """What a subscription brings; the connection holds it, and not the watch, which may become garbage."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.arrived = asyncio.Event()
        self.subscribed = asyncio.Event()
        self.lost = False
        self.refusal: ReplyError | None = None

    def push(self, reply: Any) -> None:
        if isinstance(reply, list) and reply and reply[0] == b"subscribe":
            self.subscribed.set()
        elif isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            self.messages.append(reply[2])
        elif isinstance(reply, ReplyError):
            self.refusal = reply
            self.subscribed.set()
        else:
            logger.debug("state: a subscription brought %r", reply)
        self.arrived.set()

    def end(self) -> None:
        self.lost = True
        self.arrived.set()
        self.subscribed.set()


class RedisWatch(AgentStateWatch):
    """A subscription with a connection of its own, which is made again when it is lost.

    What changed meanwhile is found by comparing versions: those of all agents are read at every start.
    """

    def __init__(
        self, link: Link, channel: str, versions: Callable[[], Awaitable[Versions]], get: Callable[[str], Any]
    ) -> None:
        self._link, self._channel = link, channel
        self._read_versions, self._get = versions, get
        self._versions: Versions = {}
        self._inbox = _Inbox()
        self._wire: Wire | None = None
        self._finalizer: weakref.finalize[..., RedisWatch] | None = None
        self._missed: deque[str] = deque()
        self._closed = False

    async def start(self) -> None:
        if self._closed or self._wire is not None:
            return
        if not self._link.is_open:
            raise not_connected()
        await self._subscribe()
        self._versions = await self._read_versions()

    async def aclose(self) -> None:
        self._closed = True
        self._inbox.end()
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._wire is not None:
            await self._wire.close()

    async def __anext__(self) -> AgentStateChange:
        await self.start()
        while not self._closed:
            if self._missed:
                change = await self._catch_up(self._missed.popleft())
            elif self._inbox.messages:
                change = self._read(self._inbox.messages.popleft())
            else:
                change = None
                await self._wait()
            if change is not None:
                return change
        raise StopAsyncIteration

    async def _wait(self) -> None:
        inbox, wire = self._inbox, self._wire
        if inbox.lost or wire is None:
            await self._start_again()
            return
        inbox.arrived.clear()
        try:
            async with asyncio.timeout(SILENCE):
                await inbox.arrived.wait()
        except TimeoutError:
            # The answer to a PING ends the silence; a connection that is dead without a word is given up.
            inbox.arrived.clear()
            wire.post(["PING"])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE):
                    await inbox.arrived.wait()
                return
            wire.abort("a subscription was silent")
            inbox.end()

    async def _start_again(self) -> None:
        if not self._closed:
            logger.warning("state: the watch of agent states lost its connection to the server, trying again")
        while not self._closed:
            try:
                await self._subscribe()
                now = await self._read_versions()
            except StateError as error:
                if error.error_code != "STATE_UNAVAILABLE":
                    raise
                await asyncio.sleep(_PAUSE)
                continue
            self._missed = deque(
                agent_id
                for agent_id in {**self._versions, **now}
                if self._versions.get(agent_id) != now.get(agent_id)
            )
            return

    async def _subscribe(self) -> None:
        self._inbox = inbox = _Inbox()
        wire = await self._link.dedicated(inbox.push, inbox.end)
        if self._finalizer is not None:
            self._finalizer.detach()
        self._wire, self._finalizer = wire, weakref.finalize(self, _abort, wire)
        wire.post(["SUBSCRIBE", self._channel])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SILENCE):
                await inbox.subscribed.wait()
        if self._closed or inbox.refusal is not None:
            await wire.close()
        if inbox.refusal is not None:
            raise self._link.failure(inbox.refusal, self._channel)

    async def _catch_up(self, agent_id: str) -> AgentStateChange | None:
        try:
            found = await self._get(agent_id)
        except StateError as error:
            logger.warning("state: a change of agent %s is not announced: %s", agent_id, error)
            return None
        if found is None:
            version = self._versions.pop(agent_id, 0)
            return AgentStateChange(agent_id, None, version + 1) if version else None
        self._versions[agent_id] = found.version
        return AgentStateChange(agent_id, found.state, found.version)

    def _read(self, message: bytes) -> AgentStateChange | None:
        try:
            what, number, rest = message.split(b" ", 2)
            version = int(number)
            if what == b"D":
                agent_id = rest.decode()
                known = self._versions.pop(agent_id, None)
                return AgentStateChange(agent_id, None, version) if known is None or known < version else None
            state = AGENT.decode_json(self._channel, rest)
        except (ValueError, StateError) as error:
            logger.warning("state: a change that cannot be read came through %s: %s", self._channel, error)
            return None
        # Read already while catching up.
        if self._versions.get(state.agent_id, 0) >= version:
            return None
        self._versions[state.agent_id] = version
        return AgentStateChange(state.agent_id, state, version)


def _abort(wire: Wire) -> None:
    with contextlib.suppress(RuntimeError):
        wire.abort("the watch became garbage")
