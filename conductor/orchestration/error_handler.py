"""What is done about an error: retry, escalate, or put aside as a dead letter."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from conductor.core.channels import DLQ, ERRORS
from conductor.core.enums import MessageType, Priority
from conductor.core.exceptions import ConductorError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage, ErrorPayload
from conductor.core.retry import RetryPolicy
from conductor.core.secrets import scrub
from conductor.core.wording import traceback_text
from conductor.orchestration.circuit_breaker import CircuitBreaker, CircuitBreakerState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conductor.orchestration.message_bus import MessageBus
    from conductor.orchestration.state_manager import StateManager

__all__ = ["CircuitBreaker", "CircuitBreakerState", "ErrorAction", "ErrorHandler", "RetryPolicy"]

logger = logging.getLogger(__name__)

SENDER = "error_handler"
MAX_DEAD_LETTERS = 10_000


class ErrorAction(StrEnum):
    """What is to be done about an error."""

    RETRY = "retry"
    ESCALATE = "escalate"
    DEAD_LETTER = "dead_letter"
    SKIP = "skip"


def decide(policy: RetryPolicy, code: str, attempt: int) -> ErrorAction:
    """Decide about an error with this code in the attempt of this number, from 0; breakers not considered."""
    if not policy.is_retryable(code):
        return ErrorAction.ESCALATE
    return ErrorAction.DEAD_LETTER if attempt >= policy.max_retries else ErrorAction.RETRY


class ErrorHandler:
    """Decides about errors, and tells the bus about those that are not retried.

    A context holds agent_id, task_id, workflow_id and attempt (from 0), each of them optional. There is one
    circuit breaker an agent, made by `breaker_factory`; the newest 10,000 dead letters are kept.
    """

    def __init__(
        self,
        message_bus: MessageBus,
        state_manager: StateManager,
        default_retry_policy: RetryPolicy | None = None,
        *,
        breaker_factory: Callable[[], CircuitBreaker] = CircuitBreaker,
    ) -> None:
        self.message_bus = message_bus
        self.state_manager = state_manager
        self.retry_policy = default_retry_policy or RetryPolicy()
        self._breaker_factory = breaker_factory
        self._breakers: dict[str, CircuitBreaker] = {}
        self._dead_letters: deque[dict[str, Any]] = deque(maxlen=MAX_DEAD_LETTERS)

    @property
    def dead_letter_count(self) -> int:
        """How many dead letters are kept."""
        return len(self._dead_letters)

    def get_dead_letter_queue(self) -> list[dict[str, Any]]:
        """Give a copy of the dead letters, oldest first."""
        return copy.deepcopy(list(self._dead_letters))

    def get_circuit_breaker(self, agent_id: str) -> CircuitBreaker:
        """Give the agent's breaker, a new closed one if there is none yet."""
        if agent_id not in self._breakers:
            self._breakers[agent_id] = self._breaker_factory()
        return self._breakers[agent_id]

    async def handle_error(self, error: Exception, context: Mapping[str, Any] | None = None) -> ErrorAction:
        """Decide about `error` and do it, except for RETRY, which is left to the caller."""
        context = context or {}
        agent_id = context.get("agent_id")
        if agent_id is not None:
            breaker = self.get_circuit_breaker(agent_id)
            if not await breaker.can_execute():
                await self.send_to_dead_letter(error, context)
                return ErrorAction.DEAD_LETTER
            await breaker.record_failure()
        action = decide(self.retry_policy, error_code(error), context.get("attempt") or 0)
        if action is ErrorAction.ESCALATE:
            await self.escalate_error(error, context)
        elif action is ErrorAction.DEAD_LETTER:
            await self.send_to_dead_letter(error, context)
        return action

    async def retry_task(self, task_id: str, agent_id: str, attempt: int) -> bool:
        """Wait the delay that follows `attempt`; then the caller may run the task again: True."""
        delay = self.retry_policy.calculate_delay(attempt)
        logger.info("task %s of agent %s is tried again in %.2f s", task_id, agent_id, delay)
        await asyncio.sleep(delay)
        return True

    async def escalate_error(self, error: Exception, context: Mapping[str, Any] | None = None) -> None:
        """Publish `error` on `conductor:errors` as CRITICAL; if that fails it is logged, with both errors."""
        await self._publish(ERRORS, error, _describe(error, context or {}), Priority.CRITICAL)

    async def send_to_dead_letter(self, error: Exception, context: Mapping[str, Any] | None = None) -> None:
        """Keep `error` as a dead letter and publish it on `conductor:dlq`; if that fails it is logged."""
        letter = _describe(error, context or {})
        self._dead_letters.append(letter)
        await self._publish(DLQ, error, letter, Priority.HIGH)

    async def _publish(
        self, channel: str, error: Exception, description: dict[str, Any], priority: Priority
    ) -> None:
        payload = ErrorPayload(
            error_code=description["error_code"],
            error_message=description["error_message"],
            agent_id=description["agent_id"],
            task_id=description["task_id"],
            traceback=description["traceback"],
        )
        message = AgentMessage(
            message_type=MessageType.ERROR,
            sender_id=description["agent_id"] or SENDER,
            payload=payload.model_dump(mode="json"),
            priority=priority,
            metadata={"error": copy.deepcopy(description)},
        )
        try:
            await self.message_bus.publish(channel, message)
        except Exception:
            logger.exception(
                "%s of agent %s, task %s could not be published on %s: %s",
                description["error_code"],
                description["agent_id"],
                description["task_id"],
                channel,
                error,
            )


def error_code(error: BaseException) -> str:
    """Give the error's own code, else UNKNOWN_ERROR."""
    code = getattr(error, "error_code", None)
    return code if isinstance(code, str) and code else "UNKNOWN_ERROR"


def _describe(error: Exception, context: Mapping[str, Any]) -> dict[str, Any]:
    """Put the error and its context into JSON-like data; what has no JSON form becomes its repr."""
    description: dict[str, Any] = {
        "error_type": type(error).__name__,
        "error_code": error_code(error),
        "error_message": scrub(str(error)) or type(error).__name__,
        "traceback": traceback_text(error),
        "context": dict(context),
        "agent_id": context.get("agent_id"),
        "task_id": context.get("task_id"),
        "workflow_id": context.get("workflow_id"),
        "attempt": context.get("attempt") or 0,
        "timestamp": utc_now().isoformat(),
    }
    if isinstance(error, ConductorError):
        description["error_details"] = error.details
    plain: dict[str, Any] = to_jsonable_python(description, fallback=repr)
    return plain
