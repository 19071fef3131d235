"""The policies about amounts that tasks share, and reserving with several policies."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from conductor.core.enums import AgentStatus, AgentType, TaskStatus
from conductor.core.exceptions import AgentError, ConfigurationError, PolicyViolationError
from conductor.core.models import TaskDefinition, TaskResult
from conductor.core.state import AgentState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.policy_engine import (
    AgentTypeConcurrencyPolicy,
    BudgetPolicy,
    Policy,
    PolicyEngine,
    PolicyResult,
    RateLimitPolicy,
    Reservation,
)
from conductor.orchestration.state_manager import InMemoryStateManager
from tests.support.scripted_agent import ScriptedAgent
from tests.support.waiting import wait_until


def engine_of(*policies: Policy) -> PolicyEngine:
    engine = PolicyEngine()
    for policy in policies:
        engine.register_policy(policy)
    return engine


def task(kind: AgentType | None = AgentType.CODING, **metadata: Any) -> TaskDefinition:
    return TaskDefinition(name="a task", assigned_to=kind, metadata=metadata)


def context(definition: TaskDefinition | None = None, **more: Any) -> dict[str, Any]:
    return {"task": definition or task(), **more}


async def denial(engine: PolicyEngine, given: Mapping[str, Any]) -> PolicyViolationError:
    with pytest.raises(PolicyViolationError) as caught:
        await engine.reserve(given)
    assert caught.value.error_code == "POLICY_VIOLATION"
    assert caught.value.policy_name in str(caught.value)
    assert caught.value.violation_details in str(caught.value)
    return caught.value


async def sent(engine: PolicyEngine, given: Mapping[str, Any]) -> Reservation:
    reservation = await engine.reserve(given)
    await reservation.confirm()
    return reservation


def one_of_each() -> list[Policy]:
    return [AgentTypeConcurrencyPolicy({"coding": 1}), RateLimitPolicy(1, 60), BudgetPolicy(1)]


@pytest.mark.parametrize("policy", one_of_each(), ids=lambda policy: policy.name)
async def test_without_a_task_they_allow(policy: Policy) -> None:
    result = await policy.evaluate({"workflow_state": None})
    assert (result.allowed, result.policy_name) == (True, policy.name)
    await engine_of(policy).reserve({})
    assert policy.description


async def test_tasks_for_agents_of_a_type_are_under_way_until_they_end() -> None:
    engine = engine_of(AgentTypeConcurrencyPolicy({"coding": 2, AgentType.REVIEW: 1}))
    first, _ = await sent(engine, context()), await sent(engine, context())
    error = await denial(engine, context())
    assert error.policy_name == "agent_type_concurrency"
    assert (
        "tasks for coding agents are under way as may be at the same time: 2 of at most 2."
        in error.violation_details
    )
    assert error.details["metadata"] == {"used": 2, "limit": 2, "waiting_helps": True}
    await sent(engine, context(task(AgentType.REVIEW)))
    await sent(engine, context(task(AgentType.TEST)))
    await first.release()
    await sent(engine, context())


async def test_the_named_agent_says_the_type() -> None:
    engine = engine_of(AgentTypeConcurrencyPolicy({"coding": 0}))
    coder = AgentState(agent_id="c", agent_type=AgentType.CODING)
    reviewer = AgentState(agent_id="r", agent_type=AgentType.REVIEW)
    await denial(engine, context(task(None), agent_state=coder))
    await engine.reserve(context(task(AgentType.CODING), agent_state=reviewer))
    await engine.reserve(context(task(None), agent_state=None))


async def test_a_rate_limit_counts_what_was_sent_also_after_it_ended() -> None:
    engine = engine_of(RateLimitPolicy(2, 60))
    for kind in (AgentType.CODING, AgentType.REVIEW):
        await (await sent(engine, context(task(kind)))).release()
    error = await denial(engine, context())
    assert (
        "tasks were dispatched within the last 60 s as may be: 2 of at most 2; the next one"
        in error.violation_details
    )
    assert 59 < error.details["metadata"]["retry_after"] <= 60


async def test_a_rate_limit_lets_through_again_when_it_said() -> None:
    engine = engine_of(RateLimitPolicy(1, 0.5))
    await sent(engine, context())
    error = await denial(engine, context())
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def let_through() -> bool:
        return await engine.check(context())

    await wait_until(let_through, interval=0.001)
    assert loop.time() - began >= error.details["metadata"]["retry_after"] - 0.01


async def test_a_rate_limit_may_be_per_type() -> None:
    engine = engine_of(RateLimitPolicy(1, 60, per="agent_type"))
    for kind in (AgentType.CODING, AgentType.REVIEW, None):
        await sent(engine, context(task(kind)))
        assert "tasks for" in (await denial(engine, context(task(kind)))).violation_details


async def test_a_budget_is_a_workflows() -> None:
    engine = engine_of(BudgetPolicy(10))
    for cost in (4, 5.5):
        await (await sent(engine, context(task(cost=cost, workflow_id="w")))).release()
    error = await denial(engine, context(task(cost=1, workflow_id="w")))
    assert error.violation_details == "It costs 1, and of the budget of workflow w, 10, 9.5 is spent."
    await sent(engine, context(task(cost=0.5, workflow_id="w")))
    await sent(engine, context(task(cost=10, workflow_id="other")))
    await sent(engine, context(task(workflow_id="w")))
    await sent(engine, context(task(cost=1000)))


async def test_what_was_not_sent_costs_nothing() -> None:
    engine = engine_of(BudgetPolicy(10, cost_key="tokens"))
    for _ in range(3):
        await (await engine.reserve(context(task(tokens=10, workflow_id="w")))).release()
    await sent(engine, context(task(tokens=10, workflow_id="w")))


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), "7", True, None, [1], 10**400])
@pytest.mark.parametrize("workflow", [{}, {"workflow_id": "w"}])
async def test_a_cost_that_is_none_is_denied(cost: object, workflow: dict[str, str]) -> None:
    error = await denial(engine_of(BudgetPolicy(10)), context(task(cost=cost, **workflow)))
    assert f"is {cost!r}; it must be a number of 0 or more" in error.violation_details


async def test_evaluating_reserves_nothing() -> None:
    engine = engine_of(*one_of_each())
    given = context(task(cost=1, workflow_id="w"))
    for _ in range(3):
        await engine.enforce(given)
    await engine.reserve(given)
    assert [result.allowed for result in await engine.evaluate_all(given)] == [False] * 3


async def test_two_of_a_kind_have_names_and_numbers_of_their_own() -> None:
    engine = engine_of(RateLimitPolicy(1, 60), RateLimitPolicy(2, 60, name="hourly"))
    assert engine.policy_count == 2
    await sent(engine, context())
    assert (await denial(engine, context())).policy_name == "rate_limit"
    engine.unregister_policy("rate_limit")
    await sent(engine, context())
    assert (await denial(engine, context())).policy_name == "hourly"


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: AgentTypeConcurrencyPolicy({}), "limits"),
        (lambda: AgentTypeConcurrencyPolicy({"cooking": 1}), "limits"),
        (lambda: AgentTypeConcurrencyPolicy({"coding": -1}), "limits.coding"),
        (lambda: AgentTypeConcurrencyPolicy({"coding": True}), "limits.coding"),
        (lambda: AgentTypeConcurrencyPolicy({"coding": 1}, name=""), "name"),
        (lambda: RateLimitPolicy(-1, 60), "max_tasks"),
        (lambda: RateLimitPolicy(1, 0), "period_seconds"),
        (lambda: RateLimitPolicy(1, float("nan")), "period_seconds"),
        (lambda: RateLimitPolicy(1, 1, per="agent"), "per"),  # type: ignore[arg-type]
        (lambda: BudgetPolicy(-1), "limit"),
        (lambda: BudgetPolicy(float("inf")), "limit"),
        (lambda: BudgetPolicy(1, cost_key=""), "cost_key"),
    ],
)
def test_bad_parameters_are_named(make: Any, parameter: str) -> None:
    with pytest.raises(ConfigurationError, match=parameter) as caught:
        make()
    assert caught.value.details["parameter"] == parameter


class Recording(Policy):
    """Notes what it is told; allows, denies, raises or waits."""

    def __init__(self, name: str, notes: list[str], behaviour: str = "allow") -> None:
        self._name, self.notes, self.behaviour = name, notes, behaviour

    @property
    def name(self) -> str:
        return self._name

    @property
    def description(self) -> str:
        return "for a test"

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        raise AssertionError("it reserves")

    async def reserve(self, context: Mapping[str, Any]) -> PolicyResult:
        self.notes.append(f"reserve {self.name}")
        if self.behaviour == "wait":
            await asyncio.Event().wait()
        if self.behaviour == "raise":
            raise KeyError("oops")
        return self._deny("no") if self.behaviour == "deny" else self._allow()

    async def confirm(self, context: Mapping[str, Any]) -> None:
        self.notes.append(f"confirm {self.name}")
        if self.behaviour == "fail":
            raise OSError("gone")

    async def release(self, context: Mapping[str, Any]) -> None:
        self.notes.append(f"release {self.name}")
        if self.behaviour == "fail":
            raise OSError("gone")


async def test_a_denial_gives_back_what_the_ones_before_reserved() -> None:
    notes: list[str] = []
    engine = engine_of(*(Recording(n, notes, b) for n, b in (("a", ""), ("b", ""), ("c", "deny"), ("d", ""))))
    assert (await denial(engine, {})).policy_name == "c"
    assert notes == ["reserve a", "reserve b", "reserve c", "release b", "release a"]


async def test_a_policy_that_raises_denies_and_is_told_to_give_back(caplog: pytest.LogCaptureFixture) -> None:
    notes: list[str] = []
    engine = engine_of(Recording("a", notes), Recording("b", notes, "raise"))
    with caplog.at_level(logging.ERROR):
        assert "oops" in (await denial(engine, {})).violation_details
    assert notes[-2:] == ["release b", "release a"]
    assert "policy b raised" in caplog.text
    assert engine.failures == {"b": 1}


async def test_who_is_cancelled_while_reserving_leaves_nothing() -> None:
    notes: list[str] = []
    engine = engine_of(Recording("a", notes), Recording("b", notes, "wait"))
    asking = asyncio.create_task(engine.reserve({}))
    await wait_until(lambda: "reserve b" in notes)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert notes[-2:] == ["release b", "release a"]


async def test_settling_goes_on_after_a_policy_that_fails_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    definition = task()
    engine = engine_of(Recording("a", notes, "fail"), Recording("b", notes, "fail"))
    reservation = await engine.reserve(context(definition))
    with caplog.at_level(logging.ERROR):
        await reservation.confirm()
        await reservation.release()
    assert notes[2:] == ["confirm a", "confirm b", "release b", "release a"]
    assert engine.failures == {"a": 2, "b": 2}
    assert reservation.id in caplog.text
    assert definition.task_id in caplog.text


async def test_the_coordinator_holds_to_a_limit_and_gives_back_at_the_end(
    bus: InMemoryMessageBus, state: InMemoryStateManager
) -> None:
    go = asyncio.Event()

    async def work(agent: ScriptedAgent, definition: TaskDefinition) -> TaskResult:
        await go.wait()
        return agent.result(definition)

    engine = engine_of(AgentTypeConcurrencyPolicy({"coding": 2}), BudgetPolicy(10))
    coordinator = AgentCoordinator(bus, state, engine)
    await coordinator.start()
    for number in range(5):
        await coordinator.register_agent(ScriptedAgent(f"coder-{number}", work=work))
    tasks = [task(cost=2, workflow_id="w") for _ in range(5)]
    running = [asyncio.create_task(coordinator.dispatch_task(one)) for one in tasks]
    await wait_until(lambda: sum(one.done() for one in running) == 3)
    go.set()
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, AgentError)]
    assert {(one.error_code, one.details["policy_name"]) for one in refused} == {
        ("POLICY_VIOLATION", "agent_type_concurrency")
    }
    assert len(refused) == 3
    assert [one.status for one in outcomes if not isinstance(one, BaseException)] == [
        TaskStatus.COMPLETED
    ] * 2
    # The slots are free again, what was spent is spent.
    for _ in range(3):
        await coordinator.dispatch_task(task(cost=2, workflow_id="w"))
    with pytest.raises(AgentError, match="budget"):
        await coordinator.dispatch_task(task(cost=2, workflow_id="w"))
    assert all(agent.status is AgentStatus.IDLE for agent in coordinator.list_agents())
    await coordinator.stop()
