"""`conductor dispatch`, `publish`, `request` and `listen`."""

import asyncio
import contextlib
import json
from typing import Any

from rich.text import Text

from conductor.cli.board import STYLES, by
from conductor.cli.execution import FAILED
from conductor.cli.output import Output
from conductor.cli.progress import Listener, Progress
from conductor.cli.servers import running_servers
from conductor.cli.summary import headline
from conductor.client import Conductor
from conductor.core.channels import task_channel, validate_channel, validate_pattern
from conductor.core.config import ConductorConfig
from conductor.core.enums import MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConfigurationError
from conductor.core.messages import AgentMessage, StatusUpdatePayload
from conductor.core.models import TaskDefinition, TaskResult


async def dispatch(
    config: ConductorConfig,
    output: Output,
    task: TaskDefinition,
    agent_id: str | None,
    *,
    wait: bool,
    policy_wait: float | None = None,
) -> int:
    """Have a task done; 0 if it was completed, or handed over where nobody waits."""
    async with running_servers(config) as conductor:
        kind = task.assigned_to.value if task.assigned_to else None
        await _require_type(conductor, agent_id, kind)
        alive = await conductor.living_agents(kind)
        if wait and not (any(agent.agent_id == agent_id for agent in alive) if agent_id else alive):
            who = f"agent {agent_id}" if agent_id else f"{kind} agent"
            raise AgentError(
                f"no {who} is running: start one with 'conductor up', or leave it the task with --no-wait",
                agent_id or "",
                task.task_id,
                "NO_AVAILABLE_AGENT",
            )
        if not wait:
            handle = await conductor.dispatch(task, agent_id, wait=policy_wait)
            output.say(f"task {task.task_id} is queued")
            output.emit({"task_id": task.task_id, "status": handle.status().value})
            return 0
        result = await _result_of(conductor, output, task, agent_id, policy_wait)
    _show_result(output, task, result)
    return 0 if result.status is TaskStatus.COMPLETED else FAILED


async def _require_type(conductor: Conductor, agent_id: str | None, kind: str | None) -> None:
    """Refuse a task for an agent that is known to be of another type."""
    known = await conductor.state.get_agent_state(agent_id) if agent_id and kind else None
    if known is not None and known.agent_type != kind:
        raise ConfigurationError(
            f"agent {agent_id} is a {known.agent_type} agent, not a {kind} one: leave out --type or --agent"
        )


async def publish(config: ConductorConfig, output: Output, channel: str, message: AgentMessage) -> int:
    """Publish a message."""
    validate_channel(channel)
    async with running_servers(config) as conductor:
        await conductor.bus.publish(channel, message)
    output.say(f"published {message.message_id} on {channel}")
    output.emit({"message_id": message.message_id, "channel": channel})
    return 0


async def request(
    config: ConductorConfig, output: Output, channel: str, message: AgentMessage, timeout: float
) -> int:
    """Publish a message and wait for its answer; an ERROR message or a failed task is a failure."""
    validate_channel(channel)
    async with running_servers(config) as conductor:
        answer = await conductor.bus.request(channel, message, timeout)
    _show_message(output, answer)
    output.emit(answer.model_dump(mode="json"))
    # Whoever answers may put into a TASK_RESULT what he likes.
    result = answer.payload.get("result") if answer.message_type is MessageType.TASK_RESULT else None
    failed = isinstance(result, dict) and result.get("status") == TaskStatus.FAILED.value
    return FAILED if failed or answer.message_type is MessageType.ERROR else 0


async def listen(
    config: ConductorConfig, output: Output, patterns: list[str], count: int | None, timeout: float | None
) -> int:
    """Show messages as they come, until there were `count`, or for `timeout` seconds, or to a signal."""
    for pattern in patterns:
        validate_pattern(pattern)
    received: asyncio.Queue[AgentMessage] = asyncio.Queue()
    async with running_servers(config) as conductor:
        for pattern in patterns:
            await conductor.bus.subscribe(pattern, received.put)
        output.note(f"listening to {', '.join(patterns)}")
        left = count
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while left is None or left > 0:
                    message = await received.get()
                    _show_message(output, message)
                    output.emit(message.model_dump(mode="json"))
                    left = None if left is None else left - 1
    return FAILED if left else 0


async def _result_of(
    conductor: Conductor,
    output: Output,
    task: TaskDefinition,
    agent_id: str | None,
    policy_wait: float | None,
) -> TaskResult:
    """Dispatch a task and wait for its end, showing its progress; cancelled, cancel it."""
    progress = Progress()

    def show(report: StatusUpdatePayload) -> None:
        if progress.take(report):
            output.say(f"{task.name}: {progress.text}")

    async with Listener(conductor.bus, task_channel(task.task_id), show) as listener:
        handle = await conductor.dispatch(task, agent_id, wait=policy_wait)
        try:
            result = await handle.result()
        except asyncio.CancelledError:
            cancelled = await asyncio.shield(handle.cancel())
            output.note(f"interrupted: task {task.task_id} {'is cancelled' if cancelled else 'had ended'}")
            raise
        await listener.announce(result, "cli")
    return result


def _show_result(output: Output, task: TaskDefinition, result: TaskResult) -> None:
    seconds = f" in {result.duration_seconds:.1f} s" if result.duration_seconds is not None else ""
    status = (result.status.value, STYLES[result.status])
    output.say(Text.assemble(f"{task.name}: ", status, f"{by(result.agent_id)}{seconds}"))
    if remark := headline(task.assigned_to, result):
        output.say(remark)
    if result.status is TaskStatus.FAILED:
        output.note(
            f"'conductor show {result.task_id}' tells more; "
            f"'conductor dlq replay {result.task_id}' has it done again once the cause is mended"
        )
    if not output.as_json and result.output_data:
        output.say(_pretty(result.output_data))
    output.emit(result.model_dump(mode="json"), indent=2)


def _show_message(output: Output, message: AgentMessage) -> None:
    if output.as_json:
        return
    time = message.timestamp.astimezone().strftime("%H:%M:%S.%f")[:-3]
    target = f" to {message.recipient_id}" if message.recipient_id else ""
    output.say(Text(f"{time} {message.message_type.value} from {message.sender_id}{target}", "bold"))
    payload = dict(message.payload)
    hidden = None if output.verbose else payload.pop("traceback", None)
    if payload:
        output.say(_pretty(payload))
    if hidden:
        output.note("conductor -v ... shows the traceback")


def _pretty(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)
