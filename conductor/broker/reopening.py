"""Reopening the record of a task whose dead letter is replayed: nodes refuse a run that has ended."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from conductor.broker.records import pending_record, record_key
from conductor.broker.results import script
from conductor.broker.topology import agent_of_queue
from conductor.broker.unclaimed import MissingAgents
from conductor.store.endpoint import read_url
from conductor.store.link import Link

if TYPE_CHECKING:
    from conductor.core.config import ConductorConfig

#: Seconds that Redis may be silent.
REPLY_TIMEOUT = 10.0


class Verdict(Enum):
    """What was found when a task was to be reopened."""

    OPENED = "opened"
    """It is filed as PENDING now: the run may be sent."""
    SENT = "sent"
    """This very run was sent before and has been started."""
    BUSY = "busy"
    """Another run of the task has not ended."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """The outcome of reopening a task, and what it takes to take it back."""

    verdict: Verdict
    task_id: str
    status: str
    """Celery's word for the state of the run that was in the way."""
    mark: str
    """Says who reopened it."""


class Reopening:
    """Reopens tasks in the result backend; lives on one event loop, and connects when first used."""

    def __init__(self, config: ConductorConfig, redis_url: str) -> None:
        self._opening = asyncio.Lock()
        self._expires = config.redis.result_expires_seconds
        self._link = Link(
            read_url(redis_url), config.bus.connect_timeout, REPLY_TIMEOUT, config.bus.publish_timeout
        )
        self._missing = MissingAgents(
            self._link, config.redis.key_prefix, config.errors.unknown_agent_seconds
        )

    async def close(self) -> None:
        """Disconnect."""
        await self._link.close()

    async def reopen(self, task_id: str, name: str, run: str, queue: str, title: str = "") -> Reopened:
        """File the task as waiting for `run` in `queue`, where nothing is in the way; StateError.

        `title` is what its definition calls it.
        """
        mark, agent_id = uuid.uuid4().hex, agent_of_queue(queue)
        keys = [record_key(task_id), *self._missing.keys(agent_id)]
        record = pending_record(task_id, name, run, title, queue)
        arguments = [record, self._expires, run, *self._missing.arguments(agent_id), mark]
        word, status = await self._run("awaited", "reopen_task", keys=keys, arguments=arguments)
        return Reopened(Verdict(word.decode()), task_id, status.decode(), mark)

    async def restore(self, reopened: Reopened) -> None:
        """Take it back, where nothing was sent after all; StateError."""
        arguments = [reopened.mark, self._expires]
        await self._run("restore_task", keys=[record_key(reopened.task_id)], arguments=arguments)

    async def _run(self, *names: str, keys: list[str], arguments: list[Any]) -> list[bytes]:
        async with self._opening:
            await self._link.open()
        command = ["EVAL", script(*names), len(keys), *keys, *arguments]
        reply: list[bytes] = await self._link.run(command, keys[0])
        return reply
