"""The spans of the message buses: for who publishes or asks, and for callbacks; none without tracing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from conductor.core.channels import is_pattern, parse_channel
from conductor.core.exceptions import MessageBusError
from conductor.core.tracing import HERE, code_of, fail_span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

    from conductor.core.messages import AgentMessage
    from conductor.core.tracing import Tracing

#: `messaging.system` of the bus of one process.
IN_MEMORY = "memory"


def publishing(
    tracing: Tracing | None, system: str, channel: str, message: AgentMessage
) -> AbstractContextManager[Span | None]:
    """Be in the span of who publishes a message."""
    if tracing is None:
        return nullcontext()
    attributes = _attributes(system, "send", channel, message)
    return tracing.span(f"publish {_kind(channel)}", "producer", attributes)


def requesting(
    tracing: Tracing | None, system: str, channel: str, message: AgentMessage
) -> AbstractContextManager[Span | None]:
    """Be in the span of who asks, until the answer is there."""
    if tracing is None:
        return nullcontext()
    attributes = _attributes(system, "send", channel, message)
    return tracing.span(f"request {_kind(channel)}", "client", attributes)


def processing(
    tracing: Tracing | None,
    system: str,
    channel: str,
    message: AgentMessage,
    headers: Mapping[str, Any] | None = HERE,
) -> AbstractContextManager[Span | None]:
    """Be in the span of a callback, below who published the message."""
    if tracing is None:
        return nullcontext()
    attributes = _attributes(system, "process", channel, message)
    attempt = message.metadata.get("attempt")
    attributes["conductor.attempt"] = attempt if isinstance(attempt, int) else None
    return tracing.span(f"process {_kind(channel)}", "consumer", attributes, headers)


async def run_in_span(
    span: AbstractContextManager[Span | None], running: Callable[[], Awaitable[Exception | None]]
) -> None:
    """Run a callback, whose failure is given back instead of raised, in its span."""
    with span as current:
        error = await running()
        if error is not None:
            fail_span(current, code_of(error))


def _attributes(system: str, operation: str, channel: str, message: AgentMessage) -> dict[str, Any]:
    return {
        "messaging.system": system,
        "messaging.operation.type": operation,
        "messaging.destination.name": channel,
        "messaging.message.id": message.message_id,
        "messaging.message.conversation_id": message.correlation_id,
        "conductor.message.type": message.message_type.value,
    }


def _kind(channel: str) -> str:
    """Name the kind of a channel: there are few, whatever the channels are called."""
    if is_pattern(channel):
        return "pattern"
    try:
        return parse_channel(channel).kind.value
    except MessageBusError:
        return "custom"
