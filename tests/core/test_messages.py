"""The message: its defaults, its age and its answer."""

from datetime import timedelta

import pytest

from conductor.core.enums import MessageType, Priority
from conductor.core.messages import (
    AgentMessage,
    ErrorPayload,
    FeedbackPayload,
    StatusUpdatePayload,
)


def make(**fields: object) -> AgentMessage:
    return AgentMessage.model_validate({"message_type": "control", "sender_id": "asker", **fields})


def test_defaults() -> None:
    assert make().model_dump(exclude={"message_id", "timestamp"}) == {
        "message_type": MessageType.CONTROL,
        "sender_id": "asker",
        "recipient_id": None,
        "payload": {},
        "correlation_id": None,
        "priority": Priority.MEDIUM,
        "ttl_seconds": None,
        "metadata": {},
    }


def test_nested_payload_survives_the_wire() -> None:
    message = make(payload={"a": [1, 2.5, None, {"b": "ü\u2028\x00"}]}, metadata={"k": True}, ttl_seconds=9)
    assert AgentMessage.model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    ("age", "expired"),
    [(timedelta(seconds=4.999), False), (timedelta(seconds=5), False), (timedelta(seconds=5.001), True)],
)
def test_a_message_expires_once_its_age_exceeds_its_ttl(age: timedelta, expired: bool) -> None:
    message = make(ttl_seconds=5)
    assert message.is_expired(now=message.timestamp + age) is expired


def test_expiry_looks_at_the_present_by_default() -> None:
    fresh = make(ttl_seconds=5)
    assert fresh.is_expired() is False
    assert make(ttl_seconds=5, timestamp=fresh.timestamp - timedelta(seconds=6)).is_expired() is True


def test_without_ttl_a_message_never_expires() -> None:
    message = make()
    assert message.is_expired(now=message.timestamp + timedelta(days=9999)) is False


def test_a_response_goes_to_the_sender_with_its_priority_and_the_requests_id() -> None:
    request = make(priority="critical", recipient_id="someone", metadata={"x": 1}, ttl_seconds=3)
    response = request.create_response("answerer", MessageType.TASK_RESULT, {"answer": 42})
    assert (response.sender_id, response.recipient_id) == ("answerer", "asker")
    assert response.message_type is MessageType.TASK_RESULT
    assert response.payload == {"answer": 42}
    assert response.priority is Priority.CRITICAL
    assert response.correlation_id == request.message_id
    assert response.message_id != request.message_id
    assert (response.ttl_seconds, response.metadata) == (None, {})
    assert request.correlation_id is None


def test_a_response_keeps_the_requests_own_correlation_id() -> None:
    response = make(correlation_id="c-1").create_response("b", MessageType.FEEDBACK, {})
    assert response.correlation_id == "c-1"


def test_payload_defaults() -> None:
    assert FeedbackPayload(source_agent_id="a").model_dump() == {
        "source_agent_id": "a",
        "findings": [],
        "severity": "info",
        "recommendations": [],
        "affected_task_ids": [],
        "metrics": {},
    }
    assert ErrorPayload(error_code="X", error_message="no").model_dump() == {
        "error_code": "X",
        "error_message": "no",
        "agent_id": None,
        "task_id": None,
        "traceback": None,
    }
    assert StatusUpdatePayload.model_validate({"agent_id": "a", "status": "idle"}).model_dump() == {
        "agent_id": "a",
        "status": "idle",
        "current_task_id": None,
        "progress_percent": None,
        "message": None,
    }
