"""A Conductor asks the policies before it dispatches: at once or waiting, in one process and in several."""

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from conductor.broker.records import record_key
from conductor.client import Conductor, TaskHandle
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentStatus, AgentType
from conductor.core.exceptions import AgentError, ConfigurationError, MessageBusError, PolicyViolationError
from conductor.core.fields import utc_now
from conductor.core.models import TaskDefinition
from conductor.core.state import AgentState
from conductor.orchestration.policy_engine import (
    AgentTypeConcurrencyPolicy,
    Policy,
    PolicyEngine,
    PolicyResult,
)
from conductor.orchestration.state_manager import StateManager
from tests.support.dispatching_process import DispatchingProcess
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

NOBODY = "nobody-at-all"
TWO_CODING = {"agent_type_concurrency": {"limits": {"coding": 2}}}
FIVE_CODING = {"agent_type_concurrency": {"limits": {"coding": 5}}}


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}:"


@pytest.fixture
def settings(valkey_url: str, prefix: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "data_dir": tmp_path / "data",
        "broker_url": valkey_url,
        "redis": {"url": valkey_url, "key_prefix": prefix},
    }


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[redis.Redis]:
    client = redis.Redis.from_url(valkey_url)
    yield client
    await client.aclose()


def task(kind: AgentType | None = AgentType.CODING, **metadata: Any) -> TaskDefinition:
    return TaskDefinition(name="a task", assigned_to=kind, metadata=metadata)


def under(settings: dict[str, Any], *policies: object) -> Conductor:
    return Conductor(ConductorConfig(**settings, policies=policies))


async def send(
    conductor: Conductor, order: TaskDefinition | None = None, wait: float | None = None
) -> TaskHandle:
    return await conductor.dispatch(order or task(), NOBODY, wait=wait)


async def denied(
    conductor: Conductor, order: TaskDefinition | None = None, wait: float | None = None
) -> PolicyViolationError:
    with pytest.raises(PolicyViolationError) as caught:
        await send(conductor, order, wait)
    return caught.value


async def test_a_denial_says_which_policy_and_why_and_leaves_nothing(
    settings: dict[str, Any], client: redis.Redis
) -> None:
    async with under(settings, TWO_CODING) as ours:
        for _ in range(2):
            await send(ours)
        order = task()
        error = await denied(ours, order)
        assert (error.error_code, error.policy_name) == ("POLICY_VIOLATION", "agent_type_concurrency")
        assert str(error) == (
            f"Task 'a task' ({order.task_id}) is not dispatched. Policy 'agent_type_concurrency' denies it: "
            "As many tasks for coding agents are under way as may be at the same time: 2 of at most 2."
        )
        assert error.details["task_id"] == order.task_id
        assert error.violation_details in str(error)
        assert not await client.exists(record_key(order.task_id))
        await send(ours, task(AgentType.REVIEW))


async def test_a_task_that_ended_makes_room_whoever_ended_it(
    settings: dict[str, Any], client: redis.Redis
) -> None:
    async with under(settings, TWO_CODING) as ours, under(settings, TWO_CODING) as theirs:
        first, second = await send(ours), await send(theirs)
        await denied(ours)
        await first.cancel()
        await send(theirs)
        record = json.loads(await client.get(record_key(second.task_id)))
        await client.set(record_key(second.task_id), json.dumps(record | {"status": "STARTED"}))
        await denied(ours)
        await client.delete(record_key(second.task_id))
        await send(ours)


async def test_many_at_once_from_several_processes_get_exactly_the_limit(settings: dict[str, Any]) -> None:
    config = ConductorConfig(**settings, policies=[FIVE_CODING])
    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(await DispatchingProcess.start(config)) for _ in range(4)
        ]
        outcomes = await asyncio.gather(
            *(process.dispatch([task() for _ in range(25)]) for process in processes)
        )
        said = [word for words in outcomes for word in words]
        assert (said.count("sent"), said.count("agent_type_concurrency")) == (5, 95)


async def test_a_budget_and_a_rate_are_shared_by_processes(settings: dict[str, Any]) -> None:
    policies = [{"rate_limit": {"max_tasks": 7, "period_seconds": 60}}, {"budget": {"limit": 10}}]
    config = ConductorConfig(**settings, policies=policies)
    async with (
        await DispatchingProcess.start(config) as one,
        await DispatchingProcess.start(config) as two,
    ):
        costly = [task(cost=2.5, workflow_id="w") for _ in range(3)]
        said = [*await one.dispatch(costly[:2]), *await two.dispatch([costly[2], task()])]
        assert said == ["sent"] * 4
        assert await two.dispatch([task(cost=4, workflow_id="w")]) == ["budget"]
        said = [word for _ in range(4) for word in await one.dispatch([task()])]
        assert said == ["sent"] * 3 + ["rate_limit"]


@pytest.mark.parametrize("policy", [FIVE_CODING, {"budget": {"limit": 5}}], ids=["slots", "budget"])
async def test_what_a_killed_process_reserved_and_did_not_send_is_given_back(
    settings: dict[str, Any], client: redis.Redis, policy: dict[str, Any], prefix: str
) -> None:
    orders = [task(cost=1, workflow_id="w") for _ in range(5)]
    async with Proxy(settings["broker_url"]) as proxy, under(settings, policy) as ours:
        config = ConductorConfig(
            **{**settings, "broker_url": proxy.url}, bus={"publish_timeout": 20}, policies=[policy]
        )
        async with await DispatchingProcess.start(config, lease_seconds=3) as other:
            proxy.fall_silent()
            await other.begin(orders)

            async def all_wait_for_the_broker() -> bool:
                return await client.exists(*(record_key(order.task_id) for order in orders)) == 5

            await wait_until(all_wait_for_the_broker)
            await other.kill()
        assert (await denied(ours, task(cost=1, workflow_id="w"))).details["metadata"]["used"] == 5
        for _ in range(5):
            await send(ours, task(cost=1, workflow_id="w"), wait=20)
        await denied(ours, task(cost=1, workflow_id="w"))


async def test_what_could_not_be_sent_is_given_back(settings: dict[str, Any]) -> None:
    async with Proxy(settings["broker_url"]) as proxy:
        limits = {"publish_timeout": 0.5, "connect_timeout": 0.5}
        through = {**settings, "broker_url": proxy.url, "bus": limits}
        only_one = {"agent_type_concurrency": {"limits": {"coding": 1}}}
        async with under(through, only_one) as ours, under(settings, only_one) as theirs:
            proxy.fall_silent()
            with pytest.raises(MessageBusError):
                await send(ours)
            await send(theirs)


async def test_a_task_that_is_dispatched_twice_takes_once(settings: dict[str, Any]) -> None:
    async with under(settings, TWO_CODING) as ours:
        order = task()
        await send(ours, order)
        with pytest.raises(AgentError) as caught:
            await send(ours, order)
        assert caught.value.error_code == "TASK_ALREADY_DISPATCHED"
        await send(ours)
        await denied(ours)


async def test_with_wait_it_queues_until_allowed(settings: dict[str, Any]) -> None:
    async with under(settings, TWO_CODING) as ours:
        first, _ = await send(ours), await send(ours)
        waiting = asyncio.create_task(send(ours, wait=30))
        assert (await denied(ours)).policy_name == "agent_type_concurrency"
        assert not waiting.done()
        await first.cancel()
        await waiting


async def test_with_wait_it_is_denied_when_the_time_is_up(settings: dict[str, Any]) -> None:
    async with under(settings, {"agent_type_concurrency": {"limits": {"coding": 0}}}) as ours:
        outcomes = await asyncio.gather(*(denied(ours, wait=0.4) for _ in range(3)))
        for error in outcomes:
            assert 0.4 <= error.details["waited_seconds"] < 30
            assert "of waiting. Policy 'agent_type_concurrency' denies it" in str(error)
        assert "waited_seconds" not in (await denied(ours)).details


async def test_those_who_wait_go_in_the_order_in_which_they_came(settings: dict[str, Any]) -> None:
    async with under(settings, {"rate_limit": {"max_tasks": 1, "period_seconds": 0.15}}) as ours:
        order: list[int] = []

        async def one(number: int) -> None:
            await send(ours, wait=30)
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(6)))
        assert order == list(range(6))


async def test_a_policy_that_says_when_to_ask_again_is_not_asked_before(settings: dict[str, Any]) -> None:
    asked: list[str] = []

    class Counting(Unsaid):
        async def reserve(self, context: Mapping[str, Any]) -> PolicyResult:
            asked.append("reserve")
            return self._deny("not yet", retry_after=3600)

    async with Conductor(ConductorConfig(**settings), policy_engine=engine_of(Counting())) as ours:
        error = await denied(ours, wait=1.0)
        assert error.policy_name == "unsaid"
        # And once more when the time is up.
        assert len(asked) == 2


async def test_tasks_of_other_agents_do_not_wait_behind(settings: dict[str, Any]) -> None:
    async with under(settings, {"agent_type_concurrency": {"limits": {"coding": 0}}}) as ours:
        waiting = asyncio.create_task(send(ours, wait=60))
        await send(ours, task(AgentType.REVIEW), wait=60)
        assert not waiting.done()
        waiting.cancel()


async def test_who_is_cancelled_while_waiting_leaves_no_reservation(
    settings: dict[str, Any], client: redis.Redis, prefix: str
) -> None:
    async with under(settings, TWO_CODING) as ours:
        handles = [await send(ours), await send(ours)]
        waiting = [asyncio.create_task(send(ours, wait=60)) for _ in range(20)]
        for moment, one in enumerate(waiting):
            for _ in range(moment):
                await asyncio.sleep(0)
            one.cancel()
            if handles:
                await handles.pop().cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        sent = [one for one in outcomes if isinstance(one, TaskHandle)]

        async def nothing_is_only_reserved() -> bool:
            return not await client.exists(f"{prefix}quota:agent_type_concurrency:coding:reserved")

        await wait_until(nothing_is_only_reserved)
        for _ in range(2 - len(sent)):
            await send(ours)
        await denied(ours)


@pytest.mark.parametrize("wait", [-1, math.nan])
async def test_a_wait_that_is_none_is_refused(settings: dict[str, Any], wait: float) -> None:
    async with under(settings, TWO_CODING) as ours:
        with pytest.raises(ConfigurationError, match="wait must be 0 or more seconds"):
            await send(ours, wait=wait)


class Unsaid(Policy):
    """Keeps what it is asked about."""

    def __init__(self, needs: frozenset[str] = frozenset()) -> None:
        self.needs = needs
        self.seen: list[dict[str, Any]] = []

    name = "unsaid"  # type: ignore[assignment]
    description = "for a test"  # type: ignore[assignment]

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        self.seen.append(dict(context))
        return self._allow()


def engine_of(*policies: Policy) -> PolicyEngine:
    engine = PolicyEngine()
    for policy in policies:
        engine.register_policy(policy)
    return engine


async def test_a_policy_is_shown_what_it_needs_and_no_more(settings: dict[str, Any]) -> None:
    modest, curious = Unsaid(), Unsaid(frozenset({"agent_states", "agent_state"}))
    agent = AgentState(agent_id=NOBODY, agent_type=AgentType.CODING, last_heartbeat=utc_now())
    gone = AgentState(agent_id="gone", agent_type=AgentType.CODING)
    order = task()
    for policy in (modest, curious):
        async with Conductor(ConductorConfig(**settings), policy_engine=engine_of(policy)) as ours:
            for state in (agent, gone):
                await ours.state.save_agent_state(state)
            await (await send(ours, order)).cancel()
    assert [set(seen) for seen in modest.seen] == [{"task", "reservation"}]
    (seen,) = curious.seen
    assert seen["task"] == order
    assert seen["agent_state"].agent_id == NOBODY
    assert set(seen["agent_states"]) == {NOBODY}


async def test_the_policies_about_agents_hold_too(settings: dict[str, Any]) -> None:
    busy = AgentState(
        agent_id=NOBODY,
        agent_type=AgentType.CODING,
        status=AgentStatus.RUNNING,
        last_heartbeat=utc_now(),
    )
    for name, parameters in (("max_concurrent_tasks", {"max_tasks": 1}), ("agent_availability", {})):
        async with under(settings, {name: parameters}) as ours:
            await ours.state.save_agent_state(busy)
            assert (await denied(ours)).policy_name == name
            await ours.state.save_agent_state(busy.model_copy(update={"status": AgentStatus.IDLE}))
            await send(ours)


async def test_an_engine_of_ones_own_takes_the_place_of_the_configured_policies(
    settings: dict[str, Any],
) -> None:
    pause = {"agent_type_concurrency": {"limits": {"coding": 0}}}
    config = ConductorConfig(**settings, policies=[pause])
    async with Conductor(config, policy_engine=PolicyEngine()) as ours:
        await send(ours)


async def test_a_limit_of_ones_own_engine_is_shared_by_processes_too(settings: dict[str, Any]) -> None:
    engine = PolicyEngine()
    async with (
        Conductor(ConductorConfig(**settings), policy_engine=engine) as ours,
        under(settings, {"agent_type_concurrency": {"limits": {"coding": 1}}}) as theirs,
    ):
        engine.register_policy(AgentTypeConcurrencyPolicy({AgentType.CODING: 1}))
        await send(ours)
        await denied(theirs)


async def test_limits_hold_after_connecting_again(settings: dict[str, Any]) -> None:
    ours = under(settings, TWO_CODING)
    for expected in ("sent", "sent", "denied"):
        async with ours:
            await (denied if expected == "denied" else send)(ours)


async def test_having_a_task_done_asks_the_policies(settings: dict[str, Any]) -> None:
    async with under(settings, {"agent_type_concurrency": {"limits": {"coding": 0}}}) as ours:
        alive = AgentState(agent_id="c", agent_type=AgentType.CODING, last_heartbeat=utc_now())
        await ours.state.save_agent_state(alive)
        with pytest.raises(PolicyViolationError) as caught:
            await ours.dispatch_task(task(), wait=0.1)
        assert caught.value.details["waited_seconds"] >= 0.1


async def test_what_was_sent_is_confirmed_when_a_conductor_has_disconnected(settings: dict[str, Any]) -> None:
    class Slow(Unsaid):
        confirmed = 0

        async def confirm(self, context: Mapping[str, Any]) -> None:
            await leaving.wait()
            for _ in range(300):  # long after the rest of the Conductor has closed
                await states[0].list_agent_states()
            self.confirmed += 1

    policy, leaving, states = Slow(), asyncio.Event(), list[StateManager]()
    ours = Conductor(ConductorConfig(**settings), policy_engine=engine_of(policy))
    async with ours:
        states.append(ours.state)
        await asyncio.gather(*(send(ours) for _ in range(5)))
        assert policy.confirmed == 0
        asyncio.get_running_loop().call_soon(leaving.set)
    assert policy.confirmed == 5
