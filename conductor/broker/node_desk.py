"""What the parent process of a node files and sends in place of its child."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from conductor.broker import topology
from conductor.broker.dead_letter_sender import DeadLetterSender
from conductor.broker.message_guard import guard_for
from conductor.broker.node_errors import ErrorDesk
from conductor.broker.records import Run, TaskRecords
from conductor.broker.results import (
    UNKNOWN_AGENT,
    assigned_task_id,
    cancelled,
    failed,
    result_without_agent,
    timed_out,
    timeout_response,
)
from conductor.broker.shared_breaker import breaker_of
from conductor.broker.signing import configured_signer, seals_of
from conductor.broker.task_letters import Fate, Original, as_json
from conductor.broker.unclaimed import AT_ONCE, MissingAgents, TaskQueue, put_aside_tasks
from conductor.broker.wire import Outgoing, seal
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.enums import TaskStatus
from conductor.core.exceptions import StateError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage
from conductor.core.metrics import NO_METRICS, Metrics, refused_as
from conductor.core.models import TaskDefinition, TaskResult
from conductor.store.redis_state import RedisStateManager

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from celery import Celery
    from kombu import Message

    from conductor.broker.addresses import Addresses
    from conductor.broker.node_request import NodeRequest
    from conductor.broker.node_spec import NodeSpec
    from conductor.broker.shared_breaker import SharedBreaker
    from conductor.core.config import ConductorConfig
    from conductor.core.enums import AgentType

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that the parent process waits for Redis: as long it hears nothing else.
PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class _Order:
    """What a request is about."""

    task_id: str
    """Empty where it is no task."""
    agent_id: str
    kind: AgentType | None
    """The type of agents whose breaker it counts for."""
    question: AgentMessage | None = None
    """The message, where somebody may wait for the answer."""


class NodeDesk:
    """Blocking, for the parent process."""

    def __init__(
        self,
        app: Celery,
        config: ConductorConfig,
        addresses: Addresses,
        spec: NodeSpec,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._metrics = metrics
        self._app = app
        self._spec = spec
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._state = RedisStateManager(
            addresses.redis_url,
            key_prefix=config.redis.key_prefix,
            expires_seconds=config.redis.expires_seconds,
            connect_timeout=PATIENCE,
            reply_timeout=PATIENCE,
            retry_seconds=PATIENCE,
        )
        self._config = config
        signer = configured_signer(config)
        self._seals = seals_of(signer)
        self._letters = DeadLetterSender(
            addresses.broker_url, config.bus.connect_timeout, PATIENCE, metrics, signer
        )
        limit = config.bus.connect_timeout
        self.guard = guard_for(signer, addresses.broker_url, addresses.redis_url, limit, metrics)
        """Of what is published to the agents of the node."""
        self._records = TaskRecords(self._state.link, config.redis.result_expires_seconds)
        self._errors = ErrorDesk(self._records, self._state, self._letters, config.errors, metrics=metrics)
        self._broker_url = addresses.broker_url
        self._missing = MissingAgents(
            self._state.link, config.redis.key_prefix, config.errors.unknown_agent_seconds
        )

    def touch(self, agent_id: str) -> bool:
        """Stamp an agent's state with the present time; False while there is no state."""
        try:
            self._run(self._state.update_agent_state(agent_id, last_heartbeat=utc_now()))
        except StateError as error:
            if error.error_code == "STATE_NOT_FOUND":
                return False
            raise
        return True

    def time_out(self, request: NodeRequest, seconds: float) -> None:
        """File the end of a task that its child cannot end, and answer who asked.

        StateError, and MessageBusError, code BROKER_UNAVAILABLE.
        """
        order = self._order_in(request)
        if order.task_id and order.kind is not None:
            self._metrics.task_ran(order.kind.value, seconds)
        if order.question is not None:
            self._time_out_question(request, order, order.question, seconds)
        else:
            result = timed_out(order.task_id, order.agent_id, seconds)
            self._bury(request, result, DeadLetterReason.TIME_LIMIT, order.kind)

    def expire(self, request: NodeRequest) -> None:
        """File the end of a task that nobody began in time.

        StateError, and MessageBusError, code BROKER_UNAVAILABLE.
        """
        text = f"The task expired: no agent began it before {request.expires:%Y-%m-%d %H:%M:%S %Z}."
        result = result_without_agent(request.id, UNKNOWN_AGENT, TaskStatus.FAILED, text, "TASK_EXPIRED")
        self._bury(request, result, DeadLetterReason.EXPIRED, None)

    def take_nonce(self, nonce: str, seconds: int) -> bool:
        """Note that the work on a signed message begins; False if it was done before. StateError."""
        return self._run(self._take_nonce(self._nonce_key(nonce), seconds))

    def settle_nonce(self, nonce: str, seconds: int) -> None:
        """Note that the work on a signed message is done: nobody may send it again. StateError."""
        self._run(self._state.link.run(["SET", self._nonce_key(nonce), "done", "EX", seconds]))

    async def _take_nonce(self, key: str, seconds: int) -> bool:
        if await self._state.link.run(["SET", key, "open", "NX", "EX", seconds]):
            return True
        return bool(await self._state.link.run(["GET", key]) != b"done")

    def _nonce_key(self, nonce: str) -> str:
        return f"{self._config.redis.key_prefix}nonce:{nonce}"

    def refuse(self, message: Message, text: str, reason: DeadLetterReason, code: str) -> None:
        """Make a dead letter of what may be forged: whatever task it names is left alone.

        StateError, and MessageBusError, code BROKER_UNAVAILABLE.
        """
        self._count_refused(reason, code)
        run, fate = Run.in_message(message, Original.of_message(message)), Fate(reason)
        task_id = run.task_id or fate.letter_id
        text = str(as_json(text))
        result = result_without_agent(task_id, UNKNOWN_AGENT, TaskStatus.FAILED, text, code)
        self._run(self._errors.put_aside(run, result, fate))

    def put_aside(self, message: Message, text: str, reason: DeadLetterReason, code: str) -> None:
        """Make a dead letter of a message that nobody may run; its failure is filed if it names one.

        StateError, and MessageBusError, code BROKER_UNAVAILABLE.
        """
        self._count_refused(reason, code)
        run, fate = Run.in_message(message, Original.of_message(message)), Fate(reason)
        self._run(self._errors.keep(run, UNKNOWN_AGENT, str(as_json(text)), code, fate))

    def _count_refused(self, reason: DeadLetterReason, code: str) -> None:
        if reason is DeadLetterReason.REFUSED:
            self._metrics.message_refused(refused_as(code))

    def sweep(self) -> None:
        """Put aside some of the tasks that wait for agents nobody has ever seen."""
        for agent_id in self._run(self._missing.find()):
            with TaskQueue(self._broker_url, agent_id, PATIENCE) as queue:
                count = self._run(put_aside_tasks(queue, self._errors, AT_ONCE))
            if count < AT_ONCE:
                self._run(self._missing.done_with(agent_id))

    def release(self, request: NodeRequest) -> None:
        """Note that a task is ended here to be delivered again, which is not its fault."""
        try:
            self._run(self._records.release(_run_of(request)))
        except (StateError, TimeoutError):
            logger.warning("Task %s counts as lost with its process: Redis is away", request.id)

    def cancel(self, request: NodeRequest) -> None:
        """File the end of a cancelled task whose child has ended, or is about to be killed."""
        order = self._order_in(request)
        if order.task_id:
            self._save(cancelled(order.task_id, order.agent_id), _run_of(request), order.kind)
            if order.kind is not None:
                self._metrics.task_ended(order.kind.value, "cancelled")

    def _order_in(self, request: NodeRequest) -> _Order:
        if request.run_by_agent is None:
            task = TaskDefinition.model_validate(_argument(request, "task"))
            agent = self._spec.agent_for(request.delivery_info["routing_key"], task.assigned_to)
            return _Order(task.task_id, agent.agent_id, agent.agent_type)
        message = AgentMessage.model_validate(_argument(request, "message"))
        task_id, asked = assigned_task_id(message), self._spec.agent_named(request.run_by_agent)
        kind = asked.agent_type if asked and task_id else None
        told = task_id and not request.kwargs.get("reply_to")
        return _Order(task_id or "", request.run_by_agent, kind, None if told else message)

    def _bury(
        self, request: NodeRequest, result: TaskResult, reason: DeadLetterReason, kind: AgentType | None
    ) -> None:
        run, breaker = _run_of(request), self._breaker_of(kind)
        fate = Fate(reason, run.retries)
        if reason is not DeadLetterReason.EXPIRED:
            start = self._run(self._records.begun(run))
            fate = Fate(reason, start.tries, start.first_failure)
        self._run(self._errors.bury(run, breaker, result, fate))

    def _time_out_question(
        self, request: NodeRequest, order: _Order, message: AgentMessage, seconds: float
    ) -> None:
        response = timeout_response(message, order.agent_id, seconds)
        if order.task_id:
            self._run(self._state.save_task_result(timed_out(order.task_id, order.agent_id, seconds)))
        error = failed(response.payload["error_message"], response.model_dump(mode="json"), None)
        filed = self._run(self._records.fail(_run_of(request), self._breaker_of(order.kind), error))
        if filed and order.kind is not None:
            self._metrics.task_ended(order.kind.value, "failed")
        if reply_to := request.kwargs.get("reply_to"):
            self._reply(response, reply_to)

    def _save(self, result: TaskResult, run: Run, kind: AgentType | None) -> None:
        """Save the result of a cancelled task, and give back its probe."""
        try:
            self._run(self._state.save_task_result(result))
            self._run(self._records.forget_probe(run, self._breaker_of(kind)))
        except (StateError, TimeoutError):
            logger.exception("The end of task %s could not be filed", result.task_id)

    def _breaker_of(self, kind: AgentType | None) -> SharedBreaker | None:
        return None if kind is None else breaker_of(self._state.link, kind, self._config)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        # While a node ends, Celery calls timers from a thread of its own.
        with self._lock:
            return self._loop.run_until_complete(self._connected(call))

    async def _connected(self, call: Coroutine[Any, Any, T]) -> T:
        if not self._state.is_connected:
            try:
                await self._state.connect()
            except BaseException:
                call.close()
                raise
        return await asyncio.wait_for(call, 3 * PATIENCE)

    def _reply(self, response: AgentMessage, reply_to: str) -> None:
        try:
            with self._app.producer_or_acquire() as producer:
                exchange = topology.replies_exchange(producer.connection.transport.driver_type)
                body = response.model_dump_json().encode()
                out = Outgoing(topology.REPLIES, reply_to, body, correlation_id=response.correlation_id)
                seal(out, self._seals)
                producer.publish(
                    body,
                    headers=out.headers,
                    exchange=exchange,
                    routing_key=reply_to,
                    declare=[exchange],
                    content_type="application/json",
                    content_encoding="utf-8",
                    correlation_id=response.correlation_id,
                )
        except Exception:
            logger.exception("The answer to %s could not be sent", response.correlation_id)


def _run_of(request: NodeRequest) -> Run:
    return Run(
        task_id=request.id,
        run_id=request.run or request.id,
        name=request.type,
        node=request.hostname,
        queue=request.delivery_info["routing_key"],
        retries=int(request.request_dict.get("retries") or 0),
        args=list(request.args or ()),
        original=lambda: Original.of_message(request.message),
    )


def _argument(request: NodeRequest, name: str) -> Any:
    """Give the first argument of a task, which a Celery client may have sent by name."""
    return request.args[0] if request.args else request.kwargs[name]
