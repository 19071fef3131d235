"""`Conductor`, the one object most programs need: bus, state, and tasks for agents on Celery nodes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from celery import states

from conductor.broker.addresses import Addresses, find_addresses
from conductor.broker.admission import Admission
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.dispatcher import CANCELLED, UNKNOWN, Dispatcher, is_run_for
from conductor.broker.kombu_bus import configured_bus
from conductor.broker.liveness import heartbeat_limit, lives
from conductor.broker.results import cancelled
from conductor.broker.task_handle import TaskHandle
from conductor.core.config import ConductorConfig, load_config
from conductor.core.exceptions import AgentError, ConductorError, ConfigurationError
from conductor.core.fields import new_id
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.core.tracing import ended_in
from conductor.core.tracing_setup import configure_tracing
from conductor.orchestration.policy_factory import build_policy_engine
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from types import TracebackType

    from conductor.broker.result_listener import FollowedTask
    from conductor.core.enums import AgentType
    from conductor.core.models import TaskDefinition, TaskResult
    from conductor.core.state import AgentState
    from conductor.orchestration.message_bus import MessageBus
    from conductor.orchestration.policy_engine import PolicyEngine
    from conductor.orchestration.state_manager import StateManager

__all__ = ["Conductor", "TaskHandle"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which `dispatch_task` looks whether an agent is still there.
LOOK_INTERVAL = 5.0
#: Seconds that a task may wait for an agent at most: a year.
MAX_EXPIRY = 366 * 86400


class Conductor:
    """Connects to the configured servers; `async with Conductor() as conductor`.

    With nothing configured it uses the embedded server that runs in `config.data_dir`, or else starts one for
    its own lifetime. It has the `dispatch_task` that a WorkflowEngine needs.

    `policy_engine`, which belongs to one Conductor, takes the place of the policies in `config`; what is
    wrong with those is a ConfigurationError. `metrics` takes the numbers of its bus,
    and counts tasks that are too large.
    """

    def __init__(
        self,
        config: ConductorConfig | None = None,
        *,
        policy_engine: PolicyEngine | None = None,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._config = config or load_config()
        if policy_engine is None and self._config.policies:
            policy_engine = build_policy_engine(self._config.policies, self._config.source_of("policies"))
        self._policy_engine = policy_engine
        self._metrics = metrics
        self._embedded: EmbeddedServer | None = None
        self._addresses: Addresses | None = None
        self._parts: _Parts | None = None
        self._flush_spans: Callable[[], Any] | None = None

    @property
    def config(self) -> ConductorConfig:
        """The configuration."""
        return self._config

    @property
    def policy_engine(self) -> PolicyEngine | None:
        """The policies that `dispatch` asks, None if there are none."""
        return self._policy_engine

    @property
    def addresses(self) -> Addresses:
        """The servers in use; ConductorError, code NOT_CONNECTED, before connecting."""
        return self._open("look at its addresses").addresses

    @property
    def bus(self) -> MessageBus:
        """The message bus; ConductorError, code NOT_CONNECTED, before connecting."""
        return self._open("use its bus").bus

    @property
    def state(self) -> StateManager:
        """The state manager; ConductorError, code NOT_CONNECTED, before connecting."""
        return self._open("use its state").state

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """What nobody could do; ConductorError, code NOT_CONNECTED, before connecting."""
        return self._open("look at dead letters").dead_letters

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        """Connect; does nothing when connected."""
        if self._parts is not None:
            return
        try:
            addresses = await self._find_servers()
            self._flush_spans = await asyncio.to_thread(configure_tracing, self._config.tracing)
            parts = _Parts(self._config, addresses, self._metrics)
            if self._policy_engine is not None:
                parts.admission = Admission(
                    self._policy_engine, self._config, parts.state, self.living_agents
                )
            await parts.open()
        except BaseException:
            await self._stop_embedded()
            raise
        self._parts = parts

    async def disconnect(self) -> None:
        """Disconnect, leaving what was dispatched to the nodes; does nothing when not connected."""
        parts, self._parts = self._parts, None
        try:
            if parts is not None:
                await parts.close()
        finally:
            await self._stop_embedded()
            if self._flush_spans is not None:
                await asyncio.to_thread(self._flush_spans)

    async def dispatch(
        self,
        task: TaskDefinition,
        agent_id: str | None = None,
        *,
        expires: float | None = None,
        wait: float | None = None,
    ) -> TaskHandle:
        """Send a task to an agent, or to whichever agent of type `task.assigned_to` is free first.

        Returns when the broker has it. A task id may be used again when its earlier run has ended. A task
        that no agent has begun `expires` seconds later fails, and is a dead letter. One that the policies
        deny waits up to `wait` seconds for them to allow it, unless they say that waiting does not help; with
        `math.inf` as long as they say that it does. Where this coroutine is cancelled the task is.
        Raises PolicyViolationError, code POLICY_VIOLATION; AgentError, code NO_AGENT_TYPE (neither agent nor
        type) or TASK_ALREADY_DISPATCHED (an earlier run has not ended); ConfigurationError for a bad
        `expires`; and MessageBusError, code BROKER_UNAVAILABLE or MESSAGE_TOO_LARGE.
        """
        if expires is not None and not 0 < expires < MAX_EXPIRY:
            raise ConfigurationError(
                f"expires must be a number of seconds from 0 to {MAX_EXPIRY}, not {expires!r}."
            )
        parts = self._open("dispatch a task")
        if parts.admission is None:
            sent = await parts.dispatcher.dispatch(task, agent_id, expires=expires)
            return self._handle(sent, task, agent_id)
        async with parts.admission.admitted(task, agent_id, wait) as run:
            sent = await parts.dispatcher.dispatch(task, agent_id, expires=expires, run=run)
        return self._handle(sent, task, agent_id)

    async def handle(self, task_id: str) -> TaskHandle:
        """Get hold of a task that was dispatched before, also by another process.

        Raises AgentError, code TASK_NOT_FOUND, when nothing is known of it.
        """
        return self._handle(await self._open("look for a task").dispatcher.attach(task_id))

    async def cancel_task(self, task_id: str, run: str = "") -> bool:
        """Cancel a task, or only the given run of it; False if it has ended or is unknown."""
        parts = self._open("cancel a task")
        status = await parts.dispatcher.cancel(task_id, run)
        if status == CANCELLED:
            await parts.state.save_task_result(cancelled(task_id, "unassigned"))
        return status != UNKNOWN and status not in states.READY_STATES

    async def dispatch_task(
        self, task: TaskDefinition, agent_timeout: float = 30.0, *, wait: float | None = None
    ) -> TaskResult:
        """Have a task done, and cancel it when this coroutine is cancelled; for `wait` see `dispatch`.

        Raises AgentError, code NO_AVAILABLE_AGENT, when for `agent_timeout` seconds there is no living agent
        of the type, and what `dispatch` raises.
        """
        if task.assigned_to is not None:
            await self._require_agent(task, agent_timeout)
        handle = await self.dispatch(task, wait=wait)
        try:
            return await self._follow(handle, task, agent_timeout)
        except BaseException:
            await asyncio.shield(handle.cancel())
            raise

    async def resume_task(self, task: TaskDefinition, agent_timeout: float = 30.0) -> TaskResult:
        """Have a task of a workflow done, going on with what the workflow dispatched of it before.

        `task.metadata["workflow_id"]` names the workflow. When this coroutine is cancelled the task goes on.
        Raises what `dispatch_task` does.
        """
        picked_up = await _finished(self._open("resume a task").dispatcher.pick_up(task))
        if picked_up is not None:
            return await self._follow(self._handle(picked_up), task, agent_timeout)
        if task.assigned_to is not None:
            await self._require_agent(task, agent_timeout)
        return await self._follow(await self._dispatch_whole(task), task, agent_timeout)

    async def _dispatch_whole(self, task: TaskDefinition) -> TaskHandle:
        """Send a task, waiting for policies as long as that helps; cancelled, send all of it or nothing."""
        parts = self._open("resume a task")
        if parts.admission is None:
            return self._handle(await _finished(parts.dispatcher.dispatch(task, None)))
        cancelled: asyncio.CancelledError | None = None
        async with parts.admission.admitted(task, None, math.inf, _reservation_of(task)) as reserved:
            run = f"{new_id()}:{reserved}"
            try:
                sent = await _finished(parts.dispatcher.dispatch(task, None, run=run))
            except asyncio.CancelledError as error:
                cancelled = error  # It was sent, so that its reservation has to hold.
        if cancelled is not None:
            raise cancelled
        return self._handle(sent)

    async def revoke_task(self, task: TaskDefinition) -> TaskResult | None:
        """Cancel what its workflow dispatched of `task`; its result if it had ended before."""
        try:
            followed, run = await self._open("revoke a task").dispatcher.attach(task.task_id)
        except AgentError:
            return None
        if not is_run_for(run, task):
            return None
        if not followed.ended.done():
            await self.cancel_task(task.task_id, run)
            return None
        return followed.ended.result()

    async def _follow(self, handle: TaskHandle, task: TaskDefinition, agent_timeout: float) -> TaskResult:
        with handle.waiting() as span:
            while not await handle.ends_within(LOOK_INTERVAL):
                await self._require_agent(task, agent_timeout)
            return ended_in(span, handle.ended())

    async def living_agents(self, agent_type: str | None = None) -> list[AgentState]:
        """List the agents whose nodes have sent a heartbeat lately."""
        limit = heartbeat_limit(self._config)
        known = await self.state.list_agent_states(agent_type=agent_type)
        return [agent for agent in known if lives(agent, limit)]

    async def forget_agents(self, agent_ids: Iterable[str]) -> None:
        """Delete what agents leave whose nodes have ended for good: their states and queues.

        Tasks that still wait in these become dead letters. Raises StateError, and MessageBusError, code
        BROKER_UNAVAILABLE.
        """
        parts, ids = self._open("forget agents"), list(agent_ids)
        for agent_id in ids:
            await parts.state.delete_agent_state(agent_id)
            await parts.dispatcher.delete_queue(agent_id)

    async def _require_agent(self, task: TaskDefinition, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not await self.living_agents(task.assigned_to):
            if loop.time() >= deadline:
                kind = task.assigned_to.value if task.assigned_to else "any"
                raise AgentError(
                    f"No agent of type {kind} is running to do task {task.name!r}: start one with "
                    f"'celery -A workers worker --agent {kind}', or with 'conductor up'.",
                    "",
                    task.task_id,
                    "NO_AVAILABLE_AGENT",
                )
            await asyncio.sleep(0.2)

    def _handle(
        self, sent: tuple[FollowedTask, str], task: TaskDefinition | None = None, agent_id: str | None = None
    ) -> TaskHandle:
        hint = partial(self._missing_agent, task.assigned_to, agent_id) if task else None
        return TaskHandle(*sent, self.cancel_task, hint)

    async def _missing_agent(self, agent_type: AgentType | None, agent_id: str | None) -> str:
        """Tell that there is no agent for a task and what to start; nothing where one is, or nobody knows."""
        try:
            alive = await self.living_agents(None if agent_id else agent_type)
        except ConductorError:
            return ""
        if agent_id:
            there = any(agent.agent_id == agent_id for agent in alive)
            return "" if there else f"No agent {agent_id!r} is running: start its node."
        if alive or agent_type is None:
            return ""
        return (
            f"No agent of type {agent_type} is running: start one with 'conductor up --agents {agent_type}', "
            f"or with 'celery -A workers worker --agent {agent_type}'."
        )

    def _open(self, wish: str) -> _Parts:
        if self._parts is None:
            raise ConductorError(
                f"Cannot {wish}: this Conductor is not connected. Use 'async with Conductor() as conductor'.",
                "NOT_CONNECTED",
            )
        return self._parts

    async def _find_servers(self) -> Addresses:
        try:
            return await asyncio.to_thread(find_addresses, self._config)
        except ConfigurationError as error:
            if error.error_code not in ("NO_BROKER", "NO_REDIS"):
                raise
        server = EmbeddedServer(self._config.data_dir)
        try:
            await asyncio.to_thread(server.start)
            self._embedded = server
        except ConfigurationError as error:
            if error.error_code != "EMBEDDED_IN_USE":
                raise
            # Somebody else was quicker.
        return await asyncio.to_thread(find_addresses, self._config)

    async def _stop_embedded(self) -> None:
        embedded, self._embedded = self._embedded, None
        if embedded is not None:
            await asyncio.to_thread(embedded.stop)


class _Parts:
    """What a connected Conductor consists of."""

    def __init__(self, config: ConductorConfig, addresses: Addresses, metrics: Metrics) -> None:
        self.addresses = addresses
        self.bus = configured_bus(config, addresses, metrics)
        self.state = RedisStateManager(
            addresses.redis_url,
            key_prefix=config.redis.key_prefix,
            expires_seconds=config.redis.expires_seconds,
        )
        self.dispatcher = Dispatcher(config, addresses, self.state, metrics)
        self.dead_letters = DeadLetterQueue(config, addresses.broker_url, addresses.redis_url)
        self.admission: Admission | None = None

    async def open(self) -> None:
        try:
            await self.bus.connect()
            await self.state.connect()
            await self.dispatcher.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self.dead_letters.close()
        if self.admission is not None:
            await self.admission.close()
        await self.dispatcher.close()
        await self.state.disconnect()
        await self.bus.disconnect()


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Do all of `work` also when cancelled meanwhile: half of a dispatch is a task that nobody finds."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        if not doing.cancelled():
            doing.exception()
        raise


def _reservation_of(task: TaskDefinition) -> str:
    """Name what a workflow reserves for a task, whichever of its engines does."""
    whose = f"{task.metadata.get('workflow_id')} {task.task_id}"
    return hashlib.sha256(whose.encode("utf-8", "surrogatepass")).hexdigest()[:32]
