"""Tasks for agents that are not there: they become dead letters instead of waiting for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

from conductor.broker import topology
from conductor.broker.records import Run
from conductor.broker.results import UNKNOWN_AGENT, script
from conductor.broker.task_letters import Fate, Original
from conductor.broker.transport import kombu_connection, limit_reading
from conductor.core.dead_letters import DeadLetterReason

if TYPE_CHECKING:
    from types import TracebackType

    from kombu import Message

    from conductor.broker.node_errors import ErrorDesk
    from conductor.store.link import Link

logger = logging.getLogger(__name__)

#: Seconds that one process has for the queue of a missing agent before another looks after it.
LEASE = 60
#: Seconds after which a task that was announced has been sent, or never will be.
ON_ITS_WAY = 20
#: Tasks put aside in one go.
AT_ONCE = 20


class MissingAgents:
    """The agents that tasks wait for and that nobody has ever seen; on one event loop."""

    def __init__(self, link: Link, prefix: str, seconds: float) -> None:
        self._link = link
        self._prefix = prefix
        self._seconds = round(seconds)

    def keys(self, agent_id: str | None) -> list[str]:
        """The keys that the script which files a dispatched task needs."""
        return [
            f"{self._prefix}agent:{agent_id or ''}",
            f"{self._prefix}awaited",
            f"{self._prefix}awaited_at",
        ]

    def arguments(self, agent_id: str | None) -> list[str | int]:
        """The arguments that it needs."""
        return [agent_id or "", self._seconds]

    async def find(self) -> list[str]:
        """Give agents whose time is over; the caller has LEASE seconds to see to their queues."""
        return [agent.decode() for agent in await self._run("")]

    async def done_with(self, agent_id: str) -> None:
        """Note that the queue of one of them is empty."""
        await self._run(agent_id)

    async def _run(self, done_with: str) -> list[bytes]:
        arguments = [f"{self._prefix}agent:", LEASE, done_with, ON_ITS_WAY]
        command = ["EVAL", script("missing_agents"), 2, *self.keys(None)[1:], *arguments]
        found: list[bytes] = await self._link.run(command)
        return found


class TaskQueue:
    """The queue of an agent, to be emptied by somebody else; `with`, and every method, blocks."""

    def __init__(self, broker_url: str, agent_id: str, timeout: float) -> None:
        self.agent_id = agent_id
        self._connection = kombu_connection(
            broker_url, connect_timeout=timeout, io_timeout=timeout, confirm_publish=True
        )
        self._queue: Any = None

    def __enter__(self) -> Self:
        self._connection.ensure_connection(max_retries=0)
        limit_reading(self._connection)
        self._queue = topology.agent_queue(self.agent_id)(self._connection.default_channel)
        # On Redis kombu 5.7 takes away only the bindings that the same connection made.
        self._queue.declare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.release()

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What says that the broker could not be reached."""
        return (*self._connection.connection_errors, *self._connection.channel_errors)

    def take(self) -> Message | None:
        """Take the next message; it goes back if it is not acknowledged."""
        # Not the queue's own `get`, which raises for what cannot be decoded.
        channel = self._queue.channel
        found = channel.basic_get(self._queue.name, no_ack=False)
        return None if found is None else channel.message_to_python(found)

    def delete(self) -> None:
        """Delete the queue."""
        self._queue.delete()


async def put_aside_tasks(queue: TaskQueue, errors: ErrorDesk, limit: int | None = None) -> int:
    """Make dead letters of the tasks in a queue, of `limit` at most, and count them.

    StateError, MessageBusError, and what `TaskQueue` raises.
    """
    count = 0
    while limit is None or count < limit:
        message = await asyncio.to_thread(queue.take)
        if message is None:
            break
        await _put_aside(message, queue.agent_id, errors)
        await asyncio.to_thread(message.ack)
        count += 1
    if count:
        text = "1 task for agent %s, which is not there, is a dead letter"
        if count != 1:
            text = f"{count} tasks for agent %s, which is not there, are dead letters"
        logger.warning(text, queue.agent_id)
    return count


async def _put_aside(message: Message, agent_id: str, errors: ErrorDesk) -> None:
    run = Run.in_message(message, Original.of_message(message))
    text = (
        f"There is no agent {agent_id!r}: start one of this id and replay the dead letter, or dispatch to "
        "another."
    )
    fate = Fate(DeadLetterReason.UNKNOWN_AGENT, attempts=0)
    await errors.keep(run, agent_id or UNKNOWN_AGENT, text, "AGENT_NOT_FOUND", fate)
