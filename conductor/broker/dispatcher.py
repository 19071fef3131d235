"""Sending tasks to agents on nodes, following and cancelling them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from celery import states
from kombu.exceptions import OperationalError

from conductor.broker import topology
from conductor.broker.app import create_app
from conductor.broker.dead_letter_sender import DeadLetterSender
from conductor.broker.node_control import CANCEL_TASK
from conductor.broker.node_errors import ErrorDesk
from conductor.broker.readable import NAME_LIMIT, display_of_task
from conductor.broker.records import TaskRecords, pending_record, record_key
from conductor.broker.result_listener import FollowedTask, ResultListener
from conductor.broker.results import script
from conductor.broker.signing import configured_signer
from conductor.broker.task_message import task_bytes
from conductor.broker.task_sender import TaskSender, broker_unavailable
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.transport import kombu_connection, limit_reading, system_of
from conductor.broker.unclaimed import MissingAgents, TaskQueue, put_aside_tasks
from conductor.core.enums import AgentType
from conductor.core.exceptions import AgentError, ConductorError, StateError
from conductor.core.fields import utc_now
from conductor.core.message_size import check_size
from conductor.core.metrics import NO_METRICS, Metrics
from conductor.core.tracing import current_headers, span_of, task_attributes
from conductor.store.endpoint import read_url
from conductor.store.link import Link

if TYPE_CHECKING:
    from kombu import Connection

    from conductor.broker.addresses import Addresses
    from conductor.core.config import ConductorConfig
    from conductor.core.models import TaskDefinition
    from conductor.orchestration.state_manager import StateManager

#: Seconds that Redis may be silent.
REPLY_TIMEOUT = 10.0
#: Seconds that the broker may be silent.
IO_TIMEOUT = 5.0
#: What `cancel` gives when the task has not been started and never will be.
CANCELLED = "CANCELLED"
UNKNOWN = "UNKNOWN"


class Dispatcher:
    """Celery's part of a Conductor; lives on one event loop."""

    def __init__(
        self,
        config: ConductorConfig,
        addresses: Addresses,
        state: StateManager,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._state = state
        self._app = create_app(config, addresses=addresses, set_as_current=False)
        self._broker_url = addresses.broker_url
        self._sender = TaskSender(self._app, self._connection, config.bus.publish_timeout)
        self._link = Link(
            read_url(addresses.redis_url),
            config.bus.connect_timeout,
            REPLY_TIMEOUT,
            config.bus.publish_timeout,
        )
        self._listener = ResultListener(self._link)
        self._missing = MissingAgents(
            self._link, config.redis.key_prefix, config.errors.unknown_agent_seconds
        )

    async def open(self) -> None:
        """Connect to the result backend; StateError."""
        await self._link.open()
        await self._listener.open()

    async def close(self) -> None:
        """Send what waits, and disconnect."""
        await self._sender.close()
        await self._listener.close()
        await self._link.close()
        await asyncio.to_thread(self._app.close)

    async def dispatch(
        self,
        task: TaskDefinition,
        agent_id: str | None,
        *,
        expires: float | None = None,
        run: str | None = None,
    ) -> tuple[FollowedTask, str]:
        """Send a task; give it and the id of the run, a new one by default. See `Conductor.dispatch`."""
        queue = _queue_of(task, agent_id)
        run = _run_prefix(task) + (run or uuid.uuid4().hex)
        try:
            async with asyncio.timeout(self._config.bus.publish_timeout):
                opened, followed = await asyncio.gather(
                    self._open_record(task, run, agent_id),
                    self._listener.follow(task.task_id),
                    return_exceptions=True,
                )
        except TimeoutError as error:
            raise StateError(
                f"Task {task.task_id} cannot be filed: Redis does not answer.",
                "STATE_UNAVAILABLE",
                {"task_id": task.task_id},
            ) from error
        if opened is not None:
            raise opened
        if isinstance(followed, BaseException):
            await self._link.run(["DEL", record_key(task.task_id)])
            raise followed
        await self._send(task, run, queue, followed, expires)
        return followed, run

    async def pick_up(self, task: TaskDefinition) -> tuple[FollowedTask, str] | None:
        """Follow what the workflow of `task` sent before; None where it sent nothing.

        What still waits is sent once more, as nobody knows whether the process that filed it came to send it.
        """
        raw = await self._link.run(["GET", record_key(task.task_id)])
        run = "" if raw is None else _run_in(raw)
        if not is_run_for(run, task):
            return None
        followed = await self._listener.attach(task.task_id)
        # Its last part is the id under which policies know it.
        new = f"{_run_prefix(task)}{uuid.uuid4().hex}:{run.rpartition(':')[2]}"
        queue = _queue_of(task, None)
        record = pending_record(task.task_id, EXECUTE_TASK, new, task.name, queue.name)
        arguments = [run, record, self._config.redis.result_expires_seconds]
        key = record_key(task.task_id)
        if not await self._link.run(["EVAL", script("supersede_task"), 1, key, *arguments]):
            return followed, run
        await self._send(task, new, queue, followed)
        return followed, new

    async def _send(
        self,
        task: TaskDefinition,
        run: str,
        queue: Any,
        followed: FollowedTask,
        expires: float | None = None,
    ) -> None:
        try:
            with span_of(f"dispatch {task.name}", "producer", self._attributes(task, run, queue)):
                message = self._message(task, run, expires)
                followed.name, followed.trace = task.name, current_headers()
                message.headers.update(followed.trace)
                await self._sender.send(EXECUTE_TASK, message, queue)
        except asyncio.CancelledError:
            self._listener.forget(followed)
            with contextlib.suppress(ConductorError):  # The message may be on its way.
                await self.cancel(task.task_id, run)
            raise
        except BaseException:
            self._listener.forget(followed)
            await self._link.run(["DEL", record_key(task.task_id)])
            raise

    async def attach(self, task_id: str) -> tuple[FollowedTask, str]:
        """Follow a task that was sent before. See `Conductor.handle`."""
        raw = await self._link.run(["GET", record_key(task_id)])
        if raw is None:
            raise AgentError(f"Nothing is known of a task {task_id!r}.", "", task_id, "TASK_NOT_FOUND")
        return await self._listener.attach(task_id), _run_in(raw)

    async def cancel(self, task_id: str, run: str) -> str:
        """Cancel a task; give CANCELLED if it did not run yet, else its Celery state or UNKNOWN.

        Raises StateError, and MessageBusError, code BROKER_UNAVAILABLE.
        """
        arguments = [run, utc_now().isoformat(), self._config.redis.result_expires_seconds]
        found = await self._link.run(["EVAL", script("cancel_task"), 1, record_key(task_id), *arguments])
        if not found:
            return UNKNOWN
        status, its_run = str(found[0].decode()), str(found[1].decode())
        if run and run != its_run:
            return UNKNOWN
        if status != CANCELLED and status not in states.READY_STATES:
            await asyncio.to_thread(self._tell_nodes, CANCEL_TASK, {"task_id": task_id, "run": its_run})
        return status

    async def delete_queue(self, agent_id: str) -> None:
        """Delete the queue of an agent that is gone for good, making dead letters of the tasks in it.

        Raises StateError, and MessageBusError, code BROKER_UNAVAILABLE.
        """
        config = self._config
        letters = DeadLetterSender(
            self._broker_url,
            config.bus.connect_timeout,
            config.bus.publish_timeout,
            signer=configured_signer(config),
        )
        errors = ErrorDesk(
            TaskRecords(self._link, config.redis.result_expires_seconds), self._state, letters, config.errors
        )
        queue = TaskQueue(self._broker_url, agent_id, config.bus.connect_timeout)
        try:
            await asyncio.to_thread(queue.__enter__)
            await put_aside_tasks(queue, errors)
            await asyncio.to_thread(queue.delete)
        except queue.errors as error:
            raise broker_unavailable(error, self._broker_url, "delete the queue of an agent") from error
        finally:
            await asyncio.to_thread(queue.__exit__, None, None, None)
            await asyncio.to_thread(letters.close)

    def _tell_nodes(self, command: str, arguments: dict[str, Any]) -> None:
        connection = self._connection()
        try:
            connection.ensure_connection(max_retries=0)
            limit_reading(connection)
            self._app.control.broadcast(command, arguments=arguments, connection=connection)
        except (OperationalError, *connection.recoverable_connection_errors) as error:
            raise broker_unavailable(error, self._broker_url, "tell the nodes to cancel a task") from error
        finally:
            connection.release()

    def _connection(self) -> Connection:
        limit = self._config.bus.connect_timeout
        return kombu_connection(
            self._broker_url, connect_timeout=limit, io_timeout=min(IO_TIMEOUT, limit), confirm_publish=True
        )

    async def _open_record(self, task: TaskDefinition, run: str, agent_id: str | None) -> None:
        keys = [record_key(task.task_id), *self._missing.keys(agent_id)]
        arguments = [
            pending_record(task.task_id, EXECUTE_TASK, run, task.name, _queue_of(task, agent_id).name),
            self._config.redis.result_expires_seconds,
            *self._missing.arguments(agent_id),
        ]
        found = await self._link.run(["EVAL", script("awaited", "open_task"), len(keys), *keys, *arguments])
        if found is not None:
            raise AgentError(
                f"Task {task.task_id} ({task.name!r}) was dispatched before and has not ended: wait for it "
                "with Conductor.handle(task_id), or cancel it.",
                "",
                task.task_id,
                "TASK_ALREADY_DISPATCHED",
            )

    def _attributes(self, task: TaskDefinition, run: str, queue: Any) -> dict[str, Any]:
        return {
            "messaging.system": system_of(self._broker_url),
            "messaging.operation.type": "send",
            "messaging.destination.name": queue.name,
            "messaging.message.id": run,
            **task_attributes(task),
        }

    def _message(self, task: TaskDefinition, run: str, expires: float | None) -> Any:
        message = self._app.amqp.as_task_v2(
            task.task_id,
            EXECUTE_TASK,
            args=(task.model_dump(mode="json"),),
            kwargs={"run": run},
            expires=expires,
            soft_time_limit=task.timeout_seconds,
            time_limit=task.timeout_seconds + self._config.work.hard_limit_grace,
            **display_of_task(task, EXECUTE_TASK),
        )
        what, limit = f"Task {task.task_id} ({task.name[:NAME_LIMIT]!r})", self._config.bus.max_message_bytes
        check_size(what, task_bytes(message), limit, self._metrics)
        return message


def is_run_for(run: str, task: TaskDefinition) -> bool:
    """Tell whether the workflow of `task` made a run, not somebody else who uses the same task id."""
    prefix = _run_prefix(task)
    return bool(prefix) and run.startswith(prefix)


def _run_prefix(task: TaskDefinition) -> str:
    workflow_id = task.metadata.get("workflow_id")
    return f"{quote(workflow_id, safe='')}:" if isinstance(workflow_id, str) else ""


def _run_in(raw: bytes) -> str:
    kwargs = json.loads(raw).get("kwargs")
    run = kwargs.get("run") if isinstance(kwargs, dict) else None
    return run if isinstance(run, str) else ""


def _queue_of(task: TaskDefinition, agent_id: str | None) -> Any:
    if agent_id is not None:
        return topology.agent_queue(agent_id)
    if task.assigned_to is not None:
        return topology.type_queue(AgentType(task.assigned_to))
    raise AgentError(
        f"Task {task.task_id} ({task.name!r}) names no type of agent in assigned_to, and no agent_id was "
        "given.",
        "",
        task.task_id,
        "NO_AGENT_TYPE",
    )
