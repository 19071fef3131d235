"""Requests to agents become Celery tasks, in the parent process of a node."""

from __future__ import annotations

import logging
import math
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from kombu import Consumer
from kombu.common import ignore_errors

from conductor.broker import topology
from conductor.broker.plain_message import DAMAGE
from conductor.broker.readable import display_of_message
from conductor.broker.wire import Address, incoming_from
from conductor.core.channels import agent_channel
from conductor.core.enums import MessageType
from conductor.core.exceptions import MessageBusError
from conductor.core.log_ids import bound_ids, message_ids
from conductor.core.message_size import bytes_in, check_size
from conductor.core.messages import AgentMessage
from conductor.core.tracing import trace_headers

if TYPE_CHECKING:
    from conductor.broker.node_spec import HostedAgent

logger = logging.getLogger(__name__)

HANDLE_MESSAGE = "conductor.handle_message"
#: Seconds that an agent has for a message which nobody put a limit on.
DEFAULT_LIMIT = 120
#: Seconds between two attempts to hear oneself while the subscriptions are being made.
PROBE_INTERVAL = 0.05


def is_work(message: AgentMessage, *, wants_answer: bool) -> bool:
    """Tell whether a message to an agent waits for its turn, as a task, instead of being handled at once."""
    if message.message_type is MessageType.TASK_ASSIGNMENT:
        return True
    return wants_answer and message.message_type is not MessageType.CONTROL


class RequestIntake(bootsteps.StartStopStep):  # type: ignore[misc]
    """Consumes what is published to the channels of the node's agents.

    It lives in the parent process, so that requests are taken while the child is busy or being replaced.
    The node is ready when a message of its own came back: on Redis a subscription exists only some time
    after it was asked for.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **options: Any) -> None:
        self._channel: Any = None
        self._probing: Any = None
        super().__init__(c, **options)

    def start(self, c: Any) -> None:
        """Subscribe; Celery calls this again for every new connection."""
        self._channel = c.connection.channel()
        driver = c.connection.transport.driver_type
        node = c.app.node
        suffix = f"{os.getpid()}.{time.monotonic_ns()}"
        for agent in node.spec.agents:
            channel = agent_channel(agent.agent_id)
            queue = topology.event_queue(driver, channel, f"conductor.intake.{agent.agent_id}.{suffix}")
            self._consume(queue, partial(self._on_message, c, agent, Address(topology.EVENTS, channel)))
        probe = f"probe.{node.spec.name}.{suffix}"
        self._consume(
            topology.reply_queue(driver, probe, f"conductor.{probe}"), partial(self._on_probe, node)
        )
        self._probing = c.timer.call_repeatedly(PROBE_INTERVAL, self._probe, (c, driver, probe))

    def stop(self, c: Any) -> None:
        """Unsubscribe."""
        if self._probing is not None:
            self._probing.cancel()
        if self._channel is not None and c.connection is not None:
            ignore_errors(c.connection, self._channel.close)
        self._channel = None

    shutdown = stop

    def _consume(self, queue: Any, on_message: Any) -> None:
        consumer = Consumer(self._channel, [queue], on_message=on_message, no_ack=True)
        consumer.on_decode_error = _on_decode_error
        consumer.consume()

    def _probe(self, c: Any, driver: str, probe: str) -> None:
        exchange = topology.replies_exchange(driver)
        with c.app.producer_or_acquire() as producer:
            producer.publish(b"", exchange=exchange, routing_key=probe, declare=[exchange])

    def _on_probe(self, node: Any, _message: Any) -> None:
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
            node.listening = True

    def _on_message(self, c: Any, agent: HostedAgent, address: Address, message: Any) -> None:
        try:
            check_size("A message", bytes_in(message.body or b""), c.app.config.bus.max_message_bytes)
            incoming = incoming_from(address.key, message.body, message.properties, message.headers)
            if (guard := c.app.node.desk.guard) is not None:
                guard.check(address, incoming)
            request = AgentMessage.model_validate_json(incoming.body)
        except MessageBusError as error:
            # Counted by the bus of the agents, which hears it too.
            with bound_ids({"agent_id": agent.agent_id} | message_ids(message.body)):
                logger.warning("What came to agent %s is dropped: %s", agent.agent_id, error)
            return
        except DAMAGE as error:
            with bound_ids({"agent_id": agent.agent_id} | message_ids(message.body)):
                logger.warning("Agent %s was sent what is no message: %s", agent.agent_id, error)
            return
        reply_to, deadline = incoming.reply_to, incoming.answer_by
        if request.is_expired() or not is_work(request, wants_answer=bool(reply_to)):
            return
        if deadline is not None and deadline <= time.time():
            return
        try:
            self._make_task(c.app, agent, request, reply_to, deadline, trace_headers(message.headers))
        except Exception:
            logger.exception("Message %s to agent %s was lost", request.message_id, agent.agent_id)

    def _make_task(
        self,
        app: Any,
        agent: HostedAgent,
        request: AgentMessage,
        reply_to: str | None,
        deadline: float | None,
        trace: dict[str, str],
    ) -> None:
        left = None if deadline is None else deadline - time.time()
        limit = _time_limit(request, left)
        # Asking the same message once more is a new run; the same asking, received twice, is not.
        run = request.message_id if deadline is None else f"{request.message_id}@{deadline}"
        task = app.amqp.as_task_v2(
            request.correlation_id or request.message_id,
            HANDLE_MESSAGE,
            args=(request.model_dump(mode="json"),),
            kwargs={"agent_id": agent.agent_id, "reply_to": reply_to, "run": run},
            expires=left,
            soft_time_limit=limit,
            time_limit=limit + app.config.work.hard_limit_grace,
            **display_of_message(request, agent.agent_id),
        )
        task.headers.update(trace)
        # Not app.send_task: it would subscribe to the result.
        with app.producer_or_acquire() as producer:
            app.amqp.send_task_message(
                producer, HANDLE_MESSAGE, task, queue=topology.agent_queue(agent.agent_id)
            )


def _on_decode_error(_message: Any, error: Exception) -> None:
    logger.warning("A message to an agent is dropped: %s", error)


def _time_limit(request: AgentMessage, left: float | None) -> int:
    """Give the seconds an agent may take: the task's own, else as long as somebody waits for the answer."""
    task = request.payload.get("task")
    seconds = task.get("timeout_seconds") if isinstance(task, dict) else None
    if (
        request.message_type is MessageType.TASK_ASSIGNMENT
        and isinstance(seconds, int)
        and 1 <= seconds <= 3600
    ):
        return seconds
    return DEFAULT_LIMIT if left is None else max(1, math.ceil(left))
