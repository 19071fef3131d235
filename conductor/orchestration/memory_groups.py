"""A group of one process: its queue, its members and what they failed at."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conductor.core.log_ids import current_message
from conductor.core.messages import AgentMessage
from conductor.core.tracing import current_headers, find_tracing
from conductor.orchestration.groups import Trial, dead_letter, delivered_copy, verdict
from conductor.orchestration.message_spans import IN_MEMORY, processing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from conductor.core.dead_letters import DeadLetter
    from conductor.core.retry import RetryPolicy

    Callback = Callable[[AgentMessage], Awaitable[None]]

#: Ids of messages that are kept before the first look for those whose window is over.
_FEW = 1024


@dataclass(frozen=True, slots=True)
class _Item:
    channel: str
    body: bytes
    message_id: str
    trial: Trial = field(default_factory=Trial)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    trace: dict[str, str] = field(default_factory=current_headers)


@dataclass(slots=True, eq=False)
class _Member:
    callback: Callback
    window: float | None
    left: bool = False


class MemoryGroup:
    """Gives each message to the member that has waited longest; belongs to one event loop.

    `start` runs a coroutine as a task that a disconnecting bus cancels; `bury` files a dead letter;
    `count` is told of each message that comes to a member, and whether it had expired.
    """

    def __init__(
        self,
        queue: str,
        policy: RetryPolicy,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        bury: Callable[[DeadLetter], Awaitable[None]],
        count: Callable[[bool], None],
    ) -> None:
        self._queue = queue
        self._policy = policy
        self._start = start
        self._bury = bury
        self._count = count
        self._waiting: deque[_Item] = deque()
        self._later: dict[asyncio.TimerHandle, _Item] = {}
        self._members: list[_Member] = []
        self._idle: deque[_Member] = deque()
        self._unbegun: dict[asyncio.Task[None], _Item] = {}
        self._seen: dict[str, tuple[str | None, float]] = {}
        self._tidy_at = _FEW

    def join(self, callback: Callback, window: float | None) -> None:
        """Add a member, unless `callback` is one."""
        if any(member.callback == callback for member in self._members):
            return
        member = _Member(callback, window)
        self._members.append(member)
        self._idle.append(member)
        self._work()

    def leave(self) -> None:
        """Remove all members; those that work finish what they have."""
        for member in self._members:
            member.left = True
        self._members.clear()
        self._idle.clear()

    def close(self) -> None:
        """Remove all members; what waits for another try waits for a member instead."""
        self.leave()
        for timer, item in self._later.items():
            timer.cancel()
            self._waiting.append(item)
        self._later.clear()

    def put(self, channel: str, message: AgentMessage, body: bytes) -> list[asyncio.Task[None]]:
        """Take a message; the tasks of the callbacks that began with that."""
        self._waiting.append(_Item(channel, body, message.message_id))
        return self._work()

    def _work(self) -> list[asyncio.Task[None]]:
        begun = []
        while self._waiting and self._idle:
            item = self._waiting.popleft()
            task = self._start(self._serve(self._idle.popleft(), item))
            self._unbegun[task] = item
            task.add_done_callback(self._recover)
            begun.append(task)
        return begun

    def _recover(self, task: asyncio.Task[None]) -> None:
        """Put back what a task had that was cancelled before its first step."""
        item = self._unbegun.pop(task, None)
        if item is not None:
            self._waiting.appendleft(item)

    async def _serve(self, member: _Member, item: _Item) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._unbegun.pop(task, None)
        try:
            await self._try(member, item)
        finally:
            if not member.left:
                self._idle.append(member)
            self._work()

    async def _try(self, member: _Member, item: _Item) -> None:
        message = delivered_copy(item.body, item.trial)
        if message.is_expired():
            self._count(True)  # noqa: FBT003
            return
        if self._is_repetition(member, item):
            return
        self._count(False)  # noqa: FBT003
        current_message.set(message)  # for the rest of this task, which is about it
        try:
            with processing(find_tracing(), IN_MEMORY, item.channel, message, item.trace):
                await member.callback(message)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                self._waiting.appendleft(replace(item, trial=item.trial.given_back()))
                raise
            await self._failed(item, error)
        except Exception as error:  # noqa: BLE001  it ends in a dead letter, or is tried again
            await self._failed(item, error)
        else:
            if member.window is not None:
                self._seen[item.message_id] = (None, self._now() + member.window)

    async def _failed(self, item: _Item, error: BaseException) -> None:
        trial = item.trial.failed()
        reason = verdict(error, trial, self._policy)
        if reason is None:
            delay = self._policy.calculate_delay(trial.failures - 1)
            self._wait(replace(item, trial=trial), delay)
            return
        self._seen.pop(item.message_id, None)
        message = AgentMessage.model_validate_json(item.body)
        body = item.body.decode()
        await self._bury(
            dead_letter(error, reason, trial, message, channel=item.channel, queue=self._queue, body=body)
        )

    def _wait(self, item: _Item, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle = loop.call_later(seconds, lambda: self._again(timer))
        self._later[timer] = item

    def _again(self, timer: asyncio.TimerHandle) -> None:
        self._waiting.append(self._later.pop(timer))
        self._work()

    def _is_repetition(self, member: _Member, item: _Item) -> bool:
        if member.window is None:
            return False
        now = self._now()
        self._tidy(now)
        identity, until = self._seen.get(item.message_id, (item.identity, 0.0))
        if identity != item.identity and until > now:
            return True
        self._seen[item.message_id] = (item.identity, now + member.window)
        return False

    def _tidy(self, now: float) -> None:
        if len(self._seen) >= self._tidy_at:
            self._seen = {known: entry for known, entry in self._seen.items() if entry[1] > now}
            self._tidy_at = max(_FEW, 2 * len(self._seen))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
