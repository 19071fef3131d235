"""What is done about an error, and who hears of it."""

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conductor.core.channels import DLQ, ERRORS
from conductor.core.enums import MessageType
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import ErrorPayload
from conductor.orchestration.error_handler import (
    CircuitBreaker,
    CircuitBreakerState,
    ErrorAction,
    ErrorHandler,
    RetryPolicy,
)
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.buses import Inbox

SLOW = ConductorError("too slow", "LLM_TIMEOUT", {"model": "m"})
CONTEXT = {"agent_id": "a", "task_id": "t", "workflow_id": "w", "attempt": 1}


@pytest.fixture
async def bus() -> AsyncIterator[InMemoryMessageBus]:
    async with InMemoryMessageBus() as bus:
        yield bus


@pytest.fixture
async def escalated(bus: InMemoryMessageBus) -> Inbox:
    inbox = Inbox()
    await bus.subscribe(ERRORS, inbox)
    return inbox


@pytest.fixture
async def dead(bus: InMemoryMessageBus) -> Inbox:
    inbox = Inbox()
    await bus.subscribe(DLQ, inbox)
    return inbox


def handler(bus: InMemoryMessageBus, policy: RetryPolicy | None = None, **more: Any) -> ErrorHandler:
    return ErrorHandler(bus, InMemoryStateManager(), policy, **more)


def test_the_actions() -> None:
    assert [action.value for action in ErrorAction] == ["retry", "escalate", "dead_letter", "skip"]


async def test_a_retryable_error_is_retried_until_the_attempts_are_used_up(
    bus: InMemoryMessageBus, escalated: Inbox, dead: Inbox
) -> None:
    errors = handler(bus)
    actions = [await errors.handle_error(SLOW, {"task_id": "t", "attempt": attempt}) for attempt in range(4)]
    assert actions == [ErrorAction.RETRY] * 3 + [ErrorAction.DEAD_LETTER]
    assert (len(escalated.messages), len(dead.messages), errors.dead_letter_count) == (0, 1, 1)


@pytest.mark.parametrize("context", [{}, None, {"attempt": None}])
async def test_a_context_may_be_empty(bus: InMemoryMessageBus, context: dict[str, Any] | None) -> None:
    assert await handler(bus).handle_error(SLOW, context) is ErrorAction.RETRY


async def test_another_error_is_escalated_with_all_that_is_known(
    bus: InMemoryMessageBus, escalated: Inbox, dead: Inbox
) -> None:
    with pytest.raises(AgentError) as caught:
        raise AgentError("no disk", "a", "t", "DISK_FULL")
    assert await handler(bus).handle_error(caught.value, CONTEXT) is ErrorAction.ESCALATE
    (message,) = escalated.messages
    assert message.message_type is MessageType.ERROR
    payload = ErrorPayload.model_validate(message.payload)
    assert (payload.error_code, payload.error_message) == ("DISK_FULL", "no disk")
    assert (payload.agent_id, payload.task_id) == ("a", "t")
    assert "raise AgentError" in (payload.traceback or "")
    assert message.metadata["error"]["workflow_id"] == "w"
    assert dead.messages == []


@pytest.mark.parametrize("error", [ValueError("x"), OSError(2, "x")])
async def test_an_error_without_a_code_is_unknown(
    bus: InMemoryMessageBus, escalated: Inbox, error: Exception
) -> None:
    assert await handler(bus).handle_error(error, {}) is ErrorAction.ESCALATE
    assert escalated.messages[0].payload["error_code"] == "UNKNOWN_ERROR"
    retrying = handler(bus, RetryPolicy(retryable_errors=["UNKNOWN_ERROR"]))
    assert await retrying.handle_error(error, {}) is ErrorAction.RETRY


async def test_an_open_breaker_makes_dead_letters_of_its_agents_errors_only(
    bus: InMemoryMessageBus, escalated: Inbox, dead: Inbox
) -> None:
    errors = handler(bus, breaker_factory=lambda: CircuitBreaker(failure_threshold=2))
    actions = [await errors.handle_error(SLOW, {"agent_id": "a"}) for _ in range(3)]
    assert actions == [ErrorAction.RETRY, ErrorAction.RETRY, ErrorAction.DEAD_LETTER]
    assert await errors.handle_error(ValueError(), {"agent_id": "a"}) is ErrorAction.DEAD_LETTER
    assert await errors.handle_error(SLOW, {"agent_id": "b"}) is ErrorAction.RETRY
    assert (len(escalated.messages), len(dead.messages)) == (0, 2)


async def test_escalated_errors_count_as_failures_too(bus: InMemoryMessageBus) -> None:
    errors = handler(bus)
    for _ in range(5):
        assert await errors.handle_error(ValueError(), {"agent_id": "a"}) is ErrorAction.ESCALATE
    assert errors.get_circuit_breaker("a").state is CircuitBreakerState.OPEN


async def test_an_agent_keeps_its_breaker(bus: InMemoryMessageBus) -> None:
    errors = handler(bus)
    assert errors.get_circuit_breaker("a") is errors.get_circuit_breaker("a")
    assert errors.get_circuit_breaker("a") is not errors.get_circuit_breaker("b")


async def test_a_dead_letter_holds_everything_and_is_given_as_a_copy(bus: InMemoryMessageBus) -> None:
    errors = handler(bus)
    await errors.send_to_dead_letter(SLOW, {**CONTEXT, "extra": [1]})
    (letter,) = errors.get_dead_letter_queue()
    assert set(letter) == {
        *("error_type", "error_code", "error_message", "traceback", "context", "agent_id", "task_id"),
        *("workflow_id", "attempt", "timestamp", "error_details"),
    }
    assert (letter["error_type"], letter["error_code"]) == ("ConductorError", "LLM_TIMEOUT")
    assert letter["error_message"] == "too slow"
    assert letter["error_details"] == {"model": "m"}
    assert letter["context"] == {**CONTEXT, "extra": [1]}
    assert {key: letter[key] for key in CONTEXT} == CONTEXT
    letter["context"]["extra"].append(2)
    letter["error_code"] = "OTHER"
    errors.get_dead_letter_queue().clear()
    (again,) = errors.get_dead_letter_queue()
    assert again["context"]["extra"] == [1]
    assert again["error_code"] == "LLM_TIMEOUT"


async def test_a_foreign_error_has_no_details_and_odd_context_is_written_down(
    bus: InMemoryMessageBus, dead: Inbox
) -> None:
    errors = handler(bus)
    await errors.send_to_dead_letter(KeyError("k"), {"odd": object(), "task_id": "t"})
    (letter,) = errors.get_dead_letter_queue()
    assert "error_details" not in letter
    assert (letter["agent_id"], letter["attempt"]) == (None, 0)
    assert "object" in json.dumps(letter["context"])
    assert dead.messages[0].metadata["error"] == letter


@pytest.mark.parametrize(("error", "action"), [(ValueError("first"), "escalate"), (SLOW, "dead_letter")])
async def test_a_bus_that_fails_does_not_hide_the_error(
    caplog: pytest.LogCaptureFixture, error: Exception, action: str
) -> None:
    errors = handler(InMemoryMessageBus())
    with caplog.at_level(logging.ERROR):
        assert await errors.handle_error(error, {"task_id": "t-9", "attempt": 3}) == action
    assert str(error) in caplog.text
    assert "t-9" in caplog.text
    assert "not connected" in caplog.text
    assert errors.dead_letter_count == (1 if action == "dead_letter" else 0)


async def test_retrying_waits_the_delay(bus: InMemoryMessageBus) -> None:
    errors = handler(bus, RetryPolicy(initial_delay=0.01, backoff_multiplier=2, max_delay=5))
    started = time.monotonic()
    assert await errors.retry_task("t", "a", 2) is True
    assert time.monotonic() - started >= 0.04
