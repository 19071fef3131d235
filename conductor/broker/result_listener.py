"""Following tasks to their ends over one connection, however many are followed."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import states

from conductor.broker.records import KEY_PREFIX, record_key
from conductor.broker.results import decode_meta
from conductor.core.exceptions import ConductorError, StateError
from conductor.store.failures import ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conductor.core.models import TaskResult
    from conductor.store.link import Link
    from conductor.store.wire import Wire

logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach Redis again.
PAUSE = 0.5
#: Seconds of silence after which the connection is tested.
SILENCE = 10.0


class FollowedTask:
    """What is known of a task; `state` is Celery's word."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.state: str = states.PENDING
        self.ended: asyncio.Future[TaskResult] = asyncio.get_running_loop().create_future()
        self.subscribed = asyncio.Event()
        """Set when the server has confirmed or refused it."""
        self.refusal: StateError | None = None
        self.name = ""
        self.trace: dict[str, str] = {}
        """The headers of the span that dispatched it, if there was one."""


class ResultListener:
    """Follows tasks by what nodes publish when they write Celery's records; lives on one event loop.

    After a lost connection everything is subscribed to and read anew. Nothing polls for results.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._tasks: dict[str, FollowedTask] = {}
        self._wire: Wire | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._unconfirmed: set[str] = set()
        self._confirmed = asyncio.Event()
        self._heard = False
        self._unsent: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._tasks)

    async def open(self) -> None:
        """Connect; StateError."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name="conductor-results")

    async def close(self) -> None:
        """End; who still waits for a result gets a ConductorError, code NOT_CONNECTED."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._wire is not None:
            await self._wire.close()
        for task in self._tasks.values():
            if not task.ended.done():
                task.ended.set_exception(_closed(task.task_id))
                task.ended.exception()  # marks it as seen, for a handle that nobody waits on
            task.subscribed.set()
        self._tasks.clear()

    async def follow(self, task_id: str) -> FollowedTask:
        """Follow a task until it ends; what nodes write after this returned is seen.

        Raises StateError, code STATE_FORBIDDEN.
        """
        key = record_key(task_id)
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = FollowedTask(task_id)
            self._send("SUBSCRIBE", key)
        await task.subscribed.wait()
        if task.refusal is not None:
            self._tasks.pop(key, None)
            raise task.refusal
        return task

    async def attach(self, task_id: str) -> FollowedTask:
        """Follow a task that was sent before, perhaps by another process."""
        task = await self.follow(task_id)
        await self._read([record_key(task_id)])
        return task

    def forget(self, task: FollowedTask) -> None:
        """Follow a task no longer."""
        key = record_key(task.task_id)
        if self._tasks.get(key) is task:
            del self._tasks[key]
            self._send("UNSUBSCRIBE", key)

    def _send(self, command: str, key: str) -> None:
        """Send soon, together with all that comes within the same turn of the loop."""
        self._unsent.append((command, key))
        if len(self._unsent) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        wire = self._wire
        if wire is None or wire.lost:
            return  # Everything that is followed is subscribed to when the connection is there again.
        start = 0
        for end, (command, _) in enumerate(unsent, 1):
            if end == len(unsent) or unsent[end][0] != command:
                wire.post([command, *(key for _, key in unsent[start:end])])
                start = end

    async def _connect(self) -> None:
        self._lost.clear()
        self._confirmed.clear()
        self._wire = await self._link.dedicated(self._on_push, self._on_loss)
        self._unconfirmed = set(self._tasks)
        if self._tasks:
            self._wire.post(["SUBSCRIBE", *self._tasks])
        else:
            self._confirmed.set()

    def _on_loss(self) -> None:
        self._lost.set()
        self._confirmed.set()

    async def _keep(self) -> None:
        """Keep the connection, and read what was missed while it was away."""
        while True:
            self._heard = False
            try:
                async with asyncio.timeout(SILENCE):
                    await self._lost.wait()
            except TimeoutError:
                await self._test()
                continue
            logger.warning("Lost the connection for results, trying again")
            while self._lost.is_set():
                try:
                    await self._connect()
                    await self._catch_up()
                except StateError as error:
                    logger.info("Still no connection for results: %s", error)
                    self._lost.set()
                    await asyncio.sleep(PAUSE)

    async def _catch_up(self) -> None:
        """Read what was written up to the moment from which the subscriptions tell it."""
        try:
            async with asyncio.timeout(SILENCE):
                await self._confirmed.wait()
        except TimeoutError:
            if self._wire is not None:
                self._wire.abort("the subscription to results was silent")
        if not self._lost.is_set():
            await self._read(self._tasks)

    async def _test(self) -> None:
        """End a connection that is dead without a word."""
        wire = self._wire
        if self._heard or wire is None:
            return
        wire.post(["PING"])
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENCE):
                await self._lost.wait()
        if not self._heard:
            wire.abort("the subscription to results was silent")

    async def _read(self, keys: Iterable[str]) -> None:
        wanted = [key for key in keys if key in self._tasks]
        if not wanted:
            return
        for key, raw in zip(wanted, await self._link.run(["MGET", *wanted]), strict=True):
            if raw is not None:
                self._on_record(key, raw)

    def _on_push(self, reply: Any) -> None:
        self._heard = True
        if isinstance(reply, ReplyError):
            self._refuse(reply)
        if not isinstance(reply, list) or len(reply) != 3:
            return
        kind, key = reply[0], reply[1].decode()
        if kind == b"message":
            self._on_record(key, reply[2])
        elif kind == b"subscribe":
            if key in self._tasks:
                self._tasks[key].subscribed.set()
            self._unconfirmed.discard(key)
            if not self._unconfirmed:
                self._confirmed.set()

    def _refuse(self, reply: ReplyError) -> None:
        for key, task in self._tasks.items():
            if not task.subscribed.is_set():
                task.refusal = self._link.failure(reply, key)
                task.subscribed.set()

    def _on_record(self, key: str, raw: bytes) -> None:
        task = self._tasks.get(key)
        if task is None or task.ended.done():
            return
        try:
            task.state, result = decode_meta(key.removeprefix(KEY_PREFIX), raw)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("The record of task %s cannot be read: %s", task.task_id, error)
            task.ended.set_exception(_unreadable(task.task_id, error))
            task.ended.exception()  # marks it as seen, for a handle that nobody waits on
        else:
            if result is None:
                return
            task.ended.set_result(result)
        self.forget(task)


def _closed(task_id: str) -> ConductorError:
    return ConductorError(
        f"The result of task {task_id} is not waited for any more: this Conductor was disconnected. The task "
        "goes on; another Conductor finds it with handle(task_id).",
        "NOT_CONNECTED",
        {"task_id": task_id},
    )


def _unreadable(task_id: str, error: Exception) -> StateError:
    failure = StateError(
        f"The record of task {task_id} in the result backend cannot be read: {error}",
        "STATE_CORRUPT",
        {"task_id": task_id},
    )
    failure.__cause__ = error
    return failure
