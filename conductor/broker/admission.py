"""Asking the policies before a task is dispatched, at once or for as long as somebody wants to wait."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from conductor.broker.records import KEY_PREFIX
from conductor.core.exceptions import PolicyViolationError
from conductor.orchestration.waiting import WaitingLines
from conductor.store.redis_quotas import LEASE_SECONDS, RedisQuotaStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conductor.core.config import ConductorConfig
    from conductor.core.models import TaskDefinition
    from conductor.core.state import AgentState
    from conductor.orchestration.policy_engine import PolicyEngine, Reservation
    from conductor.store.redis_state import RedisStateManager

#: A dispatch waits for Redis once and for the broker twice, each time `bus.publish_timeout` at most.
DISPATCH_WAITS = 3


class Admission:
    """Lets tasks of one event loop through to the nodes when the policies do.

    Tasks that wait, and are for the same agents and of the same workflow, go in the order in which they came.
    """

    def __init__(
        self,
        engine: PolicyEngine,
        config: ConductorConfig,
        state: RedisStateManager,
        living_agents: Callable[[], Awaitable[list[AgentState]]],
    ) -> None:
        """Attach the engine's shared policies to the Redis of `state`, which need not be connected yet."""
        self._engine = engine
        self._state = state
        self._living_agents = living_agents
        self._confirming: set[asyncio.Task[None]] = set()
        self._lines = WaitingLines()
        engine.attach(
            RedisQuotaStore(
                state.link,
                config.redis.key_prefix,
                KEY_PREFIX,
                lease_seconds=max(LEASE_SECONDS, DISPATCH_WAITS * config.bus.publish_timeout),
                expires_seconds=config.redis.workflow_expires_seconds,
            )
        )

    async def close(self) -> None:
        """Finish what was begun, while Redis is still connected."""
        await asyncio.gather(*self._confirming)

    @asynccontextmanager
    async def admitted(
        self,
        task: TaskDefinition,
        agent_id: str | None,
        wait: float | None,
        claimed_as: str | None = None,
    ) -> AsyncIterator[str]:
        """Reserve for a task, and give the id of the run in which it has to be sent within the context.

        That is the id of the reservation: what a process that died reserved as `claimed_as` is taken over.
        What leaves the context as an exception means that it was not sent. See `WaitingLines.pass_through`
        for `wait`, and for what is raised.
        """
        reservation = await self._reserve(task, agent_id, wait, claimed_as or uuid.uuid4().hex)
        try:
            yield reservation.id
        except BaseException:
            await asyncio.shield(reservation.release())
            raise
        # Not awaited: who is cancelled when the task was sent would not get hold of it.
        confirming = asyncio.create_task(reservation.confirm())
        self._confirming.add(confirming)
        confirming.add_done_callback(self._confirming.discard)

    async def _reserve(
        self, task: TaskDefinition, agent_id: str | None, wait: float | None, reservation_id: str
    ) -> Reservation:
        loop = asyncio.get_running_loop()
        began = loop.time()
        line = (task.assigned_to, agent_id, task.metadata.get("workflow_id"))
        try:
            ask = partial(self._ask, task, agent_id, reservation_id)
            return await self._lines.pass_through(line, ask, wait)
        except PolicyViolationError as denial:
            raise _refusal(task, denial, loop.time() - began if wait else None) from denial

    async def _ask(self, task: TaskDefinition, agent_id: str | None, reservation_id: str) -> Reservation:
        context: dict[str, Any] = {"task": task, "reservation": reservation_id}
        needs = self._engine.needs
        if "agent_states" in needs:
            context["agent_states"] = {agent.agent_id: agent for agent in await self._living_agents()}
        if "agent_state" in needs and agent_id is not None:
            context["agent_state"] = await self._state.get_agent_state(agent_id)
        return await self._engine.reserve(context)


def _refusal(
    task: TaskDefinition, denial: PolicyViolationError, waited: float | None
) -> PolicyViolationError:
    details = denial.details | {"task_id": task.task_id}
    if waited is not None:
        details["waited_seconds"] = round(waited, 3)
    after = "" if waited is None else f", after {waited:.1f} s of waiting"
    return PolicyViolationError(
        f"Task {task.name!r} ({task.task_id}) is not dispatched{after}. {denial.message}",
        denial.policy_name,
        denial.violation_details,
        details=details,
    )
