"""The policies, and asking them together."""

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.exceptions import ConfigurationError, PolicyViolationError
from conductor.core.models import TaskDefinition, TaskResult
from conductor.core.state import AgentState, WorkflowState
from conductor.orchestration.policy_engine import (
    AgentAvailabilityPolicy,
    MaxConcurrentTasksPolicy,
    PhaseGatePolicy,
    Policy,
    PolicyEngine,
    PolicyResult,
    TaskTimeoutPolicy,
)

ALLOW, DENY = True, False
BUILT_IN: list[Policy] = [
    MaxConcurrentTasksPolicy(),
    TaskTimeoutPolicy(),
    PhaseGatePolicy(),
    AgentAvailabilityPolicy(),
]


class Fixed(Policy):
    """Allows, denies or raises, and counts how often it was asked."""

    def __init__(self, name: str, verdict: bool | Exception = ALLOW) -> None:
        self._name = name
        self.verdict = verdict
        self.asked = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def description(self) -> str:
        return "for a test"

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        self.asked += 1
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return PolicyResult(allowed=self.verdict, policy_name=self._name, reason=f"{self._name} says so")


def agents(*statuses: AgentStatus) -> dict[str, AgentState]:
    return {
        str(number): AgentState(agent_id=str(number), agent_type=AgentType.TEST, status=status)
        for number, status in enumerate(statuses)
    }


def workflow(completed: int, failed: int) -> WorkflowState:
    statuses = [TaskStatus.COMPLETED] * completed + [TaskStatus.FAILED] * failed
    results = [TaskResult(task_id=str(n), agent_id="a", status=status) for n, status in enumerate(statuses)]
    return WorkflowState(task_results={result.task_id: result for result in results})


def test_result_defaults() -> None:
    result = PolicyResult(allowed=True, policy_name="p")
    assert (result.reason, result.metadata) == ("", {})


@pytest.mark.parametrize("policy", BUILT_IN, ids=lambda policy: type(policy).__name__)
async def test_a_policy_whose_key_is_missing_allows(policy: Policy) -> None:
    result = await policy.evaluate({"unrelated": 1})
    assert result.allowed
    assert result.policy_name == policy.name
    assert policy.description


def test_built_in_names_are_distinct() -> None:
    assert len({policy.name for policy in BUILT_IN}) == 4


@pytest.mark.parametrize(("running", "allowed"), [(0, True), (4, True), (5, False), (6, False)])
async def test_max_concurrent_tasks(running: int, allowed: bool) -> None:
    idle = [AgentStatus.IDLE, AgentStatus.WAITING, AgentStatus.FAILED] * 3
    states = agents(*[AgentStatus.RUNNING] * running, *idle)
    for given in (states, list(states.values())):
        result = await MaxConcurrentTasksPolicy().evaluate({"agent_states": given})
        assert result.allowed is allowed
        assert allowed or str(running) in result.reason


async def test_no_concurrent_task_at_all_may_be_allowed() -> None:
    assert not (await MaxConcurrentTasksPolicy(max_tasks=0).evaluate({"agent_states": {}})).allowed


@pytest.mark.parametrize(
    ("timeout", "allowed"), [(0, False), (-1, False), (1, True), (3599, True), (3600, False), (None, True)]
)
async def test_task_timeout(timeout: int | None, allowed: bool) -> None:
    task = TaskDefinition(name="x").model_copy(update={"timeout_seconds": timeout})
    assert (await TaskTimeoutPolicy().evaluate({"task": task})).allowed is allowed


async def test_the_default_timeout_is_for_tasks_without_one() -> None:
    assert TaskTimeoutPolicy().default_timeout == 300.0
    task = TaskDefinition(name="x").model_copy(update={"timeout_seconds": None})
    assert not (await TaskTimeoutPolicy(default_timeout=4000).evaluate({"task": task})).allowed


@pytest.mark.parametrize(
    ("completed", "failed", "allowed"),
    [(0, 0, False), (0, 1, False), (4, 1, True), (79, 21, False), (80, 20, True), (1, 0, True)],
)
async def test_phase_gate(completed: int, failed: int, allowed: bool) -> None:
    result = await PhaseGatePolicy().evaluate({"workflow_state": workflow(completed, failed)})
    assert result.allowed is allowed
    assert bool(result.reason) is not allowed


async def test_phase_gate_with_nothing_required_still_wants_one_completed() -> None:
    gate = PhaseGatePolicy(required_success_rate=0)
    assert not (await gate.evaluate({"workflow_state": workflow(0, 1)})).allowed
    assert (await gate.evaluate({"workflow_state": workflow(1, 9)})).allowed


@pytest.mark.parametrize("status", AgentStatus)
async def test_agent_availability(status: AgentStatus) -> None:
    (state,) = agents(status).values()
    result = await AgentAvailabilityPolicy().evaluate({"agent_state": state})
    assert result.allowed is (status not in {AgentStatus.RUNNING, AgentStatus.FAILED})


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_bad_settings_are_named(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="required_success_rate"):
        PhaseGatePolicy(rate)
    with pytest.raises(ConfigurationError, match="max_tasks"):
        MaxConcurrentTasksPolicy(-1)


def engine_of(*policies: Policy) -> PolicyEngine:
    engine = PolicyEngine()
    for policy in policies:
        engine.register_policy(policy)
    return engine


async def test_an_engine_without_policies_allows() -> None:
    engine = PolicyEngine()
    assert engine.policy_count == 0
    assert await engine.evaluate_all({}) == []
    assert await engine.check({})
    await engine.enforce({})


def test_registering_and_unregistering() -> None:
    first, second = Fixed("first"), Fixed("second")
    engine = engine_of(first, second)
    engine.policies.clear()
    assert engine.policies == [first, second]
    assert engine.unregister_policy("first") is True
    assert engine.unregister_policy("first") is False
    assert (engine.policies, engine.policy_count) == ([second], 1)


def test_a_policy_of_the_same_name_takes_the_place() -> None:
    old, other, new = Fixed("same"), Fixed("other"), Fixed("same", DENY)
    assert engine_of(old, other, new).policies == [new, other]


async def test_all_are_asked_in_order_also_after_a_denial() -> None:
    engine = engine_of(Fixed("a"), Fixed("b", DENY), Fixed("c"))
    results = await engine.evaluate_all({})
    assert [(result.policy_name, result.allowed) for result in results] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]
    assert not await engine.check({})
    engine.unregister_policy("b")
    assert await engine.check({})


async def test_enforcing_stops_at_the_first_denial() -> None:
    after = Fixed("c", DENY)
    with pytest.raises(PolicyViolationError, match="b says so") as caught:
        await engine_of(Fixed("a"), Fixed("b", DENY), after).enforce({})
    error = caught.value
    assert (error.policy_name, error.violation_details) == ("b", "b says so")
    assert error.error_code == "POLICY_VIOLATION"
    assert after.asked == 0


class Naive(Policy):
    """Looks at the task without looking whether there is one."""

    name, description = "naive", "Tasks have a name."

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        return self._allow() if context["task"].name else self._deny("no name")


async def test_a_policy_that_looks_for_what_is_not_there_allows() -> None:
    engine = engine_of(Naive())
    assert await engine.check({"workflow_state": WorkflowState()})
    assert (await engine.reserve({"agent_states": {}})).id
    assert engine.failures == {}


async def test_what_is_no_decision_denies() -> None:
    class Yes(Naive):
        async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
            return True  # type: ignore[return-value]

    engine = engine_of(Yes())
    (result,) = await engine.evaluate_all({})
    assert not result.allowed
    assert "not with True" in result.reason
    with pytest.raises(PolicyViolationError, match="PolicyResult"):
        await engine.reserve({})


async def test_a_policy_that_raises_denies(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(Fixed("broken", KeyError("oops")), Fixed("fine"))
    with caplog.at_level(logging.ERROR):
        broken, fine = await engine.evaluate_all({})
    assert (broken.allowed, broken.policy_name, fine.allowed) == (False, "broken", True)
    assert "oops" in broken.reason
    assert "broken" in caplog.text
    with pytest.raises(PolicyViolationError, match="oops"):
        await engine.enforce({})
