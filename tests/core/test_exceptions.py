"""The errors: their codes, their details, and how they travel."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from conductor.core.exceptions import (
    AgentError,
    ConductorError,
    ConfigurationError,
    MessageBusError,
    PolicyViolationError,
    StateError,
    WorkflowError,
)

ERRORS: list[ConductorError] = [
    ConductorError("broken"),
    ConductorError("broken", "SOME_CODE", {"n": 1}),
    ConfigurationError("broken", details={"key": "x"}),
    AgentError("broken", "agent-1"),
    AgentError("broken", "agent-1", "task-1", "NO_AVAILABLE_AGENT", {"tried": ["a", "b"]}),
    WorkflowError("broken", "flow-1", "MAX_FEEDBACK_LOOPS"),
    MessageBusError("broken", "REQUEST_TIMEOUT", {"timeout_seconds": 1.5}),
    StateError("broken"),
    PolicyViolationError("broken", "max_tasks"),
    PolicyViolationError("broken", "max_tasks", "6 of 5", "DENIED", {"n": None}),
]


class UsersError(AgentError):
    """A subclass whose constructor has another shape."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is taken", "agent-1", error_code="PORT_TAKEN")
        self.port = port


def by_celery(error: ConductorError) -> Any:
    """Take the way of a failed task's result: the real backend's own encoding, JSON, decoding."""
    backend = Celery(set_as_current=False, backend="cache+memory://").backend
    stored = json.loads(json.dumps(backend.prepare_exception(error, "json")))
    return backend.exception_to_python(stored)


def by_pickle(error: ConductorError) -> Any:
    return pickle.loads(pickle.dumps(error))


def by_args(error: ConductorError) -> Any:
    return type(error)(*error.args)


@pytest.mark.parametrize("travel", [by_celery, by_pickle, by_args, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}-{error.error_code}")
def test_an_error_survives_travelling(
    error: ConductorError, travel: Callable[[ConductorError], ConductorError]
) -> None:
    there = travel(error)
    assert type(there) is type(error)
    assert str(there) == "broken"
    assert vars(there) == vars(error)
    assert there.args == error.args
    assert there.to_dict() == error.to_dict()


def test_a_subclass_with_another_constructor_survives_pickling() -> None:
    there = pickle.loads(pickle.dumps(UsersError(80)))
    assert (type(there), there.port, there.error_code) == (UsersError, 80, "PORT_TAKEN")
    assert str(there) == "port 80 is taken"


def test_details_that_json_cannot_hold_do_not_stop_celery() -> None:
    there = by_celery(StateError("broken", "X", {"object": object()}))
    assert (type(there), there.error_code) == (StateError, "X")
    assert "object" in there.details["details"]


def test_details_added_after_construction_travel_too() -> None:
    error = StateError("broken")
    error.details["key"] = "k"
    assert by_pickle(error).details == by_celery(error).details == {"key": "k"}


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (ConductorError("m"), "UNKNOWN_ERROR", {}),
        (ConfigurationError("m"), "CONFIG_ERROR", {}),
        (AgentError("m", agent_id="a"), "AGENT_ERROR", {"agent_id": "a"}),
        (AgentError("m", "a", task_id="t"), "AGENT_ERROR", {"agent_id": "a", "task_id": "t"}),
        (WorkflowError("m", workflow_id="w"), "WORKFLOW_ERROR", {"workflow_id": "w"}),
        (MessageBusError("m"), "MESSAGE_BUS_ERROR", {}),
        (StateError("m"), "STATE_ERROR", {}),
        (PolicyViolationError("m", policy_name="p"), "POLICY_VIOLATION", {"policy_name": "p"}),
    ],
)
def test_default_codes_and_ids_in_details(error: ConductorError, code: str, details: dict[str, Any]) -> None:
    assert isinstance(error, ConductorError)
    assert error.message == str(error) == "m"
    assert error.error_code == code
    assert error.details == details
    assert error.to_dict() == {
        "error_type": type(error).__name__,
        "message": "m",
        "error_code": code,
        "details": details,
    }


def test_attributes_of_each_kind() -> None:
    agent = AgentError("m", "a")
    assert (agent.agent_id, agent.task_id) == ("a", None)
    assert WorkflowError("m", "w").workflow_id == "w"
    policy = PolicyViolationError("m", "p")
    assert (policy.policy_name, policy.violation_details) == ("p", "")


def test_the_callers_details_are_copied() -> None:
    given = {"n": 1}
    error = AgentError("m", "a", details=given)
    error.details["n"] = 2
    assert given == {"n": 1}
