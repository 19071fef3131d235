"""The breaker of one process and the one that all share, held to the same behaviour."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from conductor.broker.records import Run, TaskRecords
from conductor.broker.shared_breaker import PROBE_SLACK, SharedBreaker
from conductor.broker.task_letters import Original
from conductor.core.config import BreakerConfig
from conductor.orchestration.circuit_breaker import CircuitBreaker, CircuitBreakerState
from conductor.store.endpoint import read_url
from conductor.store.link import Link
from tests.support.waiting import wait_until

QUICK = BreakerConfig(failure_threshold=3, recovery_timeout=0.05, success_threshold=2)
SLOW = BreakerConfig(failure_threshold=3, recovery_timeout=3600, success_threshold=2)

Breaker = CircuitBreaker | SharedBreaker


@pytest.fixture
async def link(valkey_url: str) -> AsyncIterator[Link]:
    link = Link(read_url(valkey_url), 5, 5, 5)
    await link.open()
    yield link
    await link.close()


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture(params=["one process", "shared"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, link: Link, name: str, config: BreakerConfig) -> Breaker:
    if kind == "shared":
        return SharedBreaker(link, name, config, "test:")
    return CircuitBreaker(config.failure_threshold, config.recovery_timeout, config.success_threshold)


async def state(breaker: Breaker) -> CircuitBreakerState:
    return breaker.state if isinstance(breaker, CircuitBreaker) else await breaker.state()


async def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        await breaker.record_failure()


async def test_it_opens_at_the_threshold_and_not_before(kind: str, link: Link, name: str) -> None:
    breaker = make(kind, link, name, SLOW)
    await fail(breaker, 2)
    assert (await breaker.can_execute(), await state(breaker)) == (True, CircuitBreakerState.CLOSED)
    await fail(breaker, 1)
    assert (await breaker.can_execute(), await state(breaker)) == (False, CircuitBreakerState.OPEN)


async def test_a_success_resets_the_count(kind: str, link: Link, name: str) -> None:
    breaker = make(kind, link, name, SLOW)
    await fail(breaker, 2)
    await breaker.record_success()
    await fail(breaker, 2)
    assert await state(breaker) is CircuitBreakerState.CLOSED


async def test_after_the_recovery_enough_successes_close_it(kind: str, link: Link, name: str) -> None:
    breaker = make(kind, link, name, QUICK)
    await fail(breaker)
    await wait_until(breaker.can_execute)
    assert await state(breaker) is CircuitBreakerState.HALF_OPEN
    await breaker.record_success()
    assert await breaker.can_execute()
    await breaker.record_success()
    assert await state(breaker) is CircuitBreakerState.CLOSED


async def test_a_failing_probe_opens_it_again(kind: str, link: Link, name: str) -> None:
    breaker = make(kind, link, name, QUICK)
    await fail(breaker)
    await wait_until(breaker.can_execute)
    await breaker.record_failure()
    assert await state(breaker) is CircuitBreakerState.OPEN


async def test_all_who_share_it_count_together(link: Link, name: str) -> None:
    several = [SharedBreaker(link, name, SLOW, "test:") for _ in range(3)]
    await asyncio.gather(*(breaker.record_failure() for breaker in several))
    assert [await breaker.can_execute() for breaker in several] == [False] * 3
    assert await SharedBreaker(link, "another", SLOW, "test:").can_execute()


async def test_exactly_the_probes_go_through_whoever_asks(link: Link, name: str) -> None:
    several = [SharedBreaker(link, name, QUICK, "test:") for _ in range(50)]
    await fail(several[0])
    await wait_until(several[0].can_execute)
    answers = await asyncio.gather(*(breaker.can_execute() for breaker in several[1:]))
    assert sum(answers) == QUICK.success_threshold - 1
    probing = several[1:][answers.index(True)]
    await probing.record_success()
    assert not await several[2].can_execute()  # one went well, the other is under way
    await several[0].record_success()
    assert await several[2].state() is CircuitBreakerState.CLOSED


async def test_what_was_under_way_when_it_opened_decides_nothing(link: Link, name: str) -> None:
    early, prober = (SharedBreaker(link, name, QUICK, "test:") for _ in range(2))
    await fail(early)
    await wait_until(prober.can_execute)
    await early.record_failure()
    await early.record_success()
    assert await prober.state() is CircuitBreakerState.HALF_OPEN


async def test_a_probe_of_which_nothing_is_known_makes_room(link: Link, name: str) -> None:
    config = QUICK.model_copy(update={"success_threshold": 1})
    one, other = (SharedBreaker(link, name, config, "test:") for _ in range(2))
    await fail(one)
    await wait_until(one.can_execute)
    assert not await other.can_execute()
    await one.forget(one._probes.pop())
    assert await other.can_execute()


async def test_a_probe_may_take_as_long_as_its_run_and_no_longer(link: Link, name: str) -> None:
    breaker, records = SharedBreaker(link, name, QUICK, "test:"), TaskRecords(link, 60)
    await fail(breaker)
    task_id = uuid.uuid4().hex
    run = Run(task_id, "run", "a task", "a@node", "queue", 0, [], lambda: Original("queue", ""), limit=120)
    await wait_until(lambda: _begins(records, run, breaker))
    until = int(await link.run(["HGET", breaker.key, f"probe:{task_id}"]))
    seconds, micros = await link.run(["TIME"])
    left = until / 1000 - int(seconds) - int(micros) / 1e6
    assert 120 < left <= 120 + PROBE_SLACK


async def test_a_probe_whose_time_is_over_makes_room_and_has_to_ask_again(link: Link, name: str) -> None:
    breaker = SharedBreaker(link, name, QUICK.model_copy(update={"success_threshold": 1}), "test:")
    await fail(breaker)
    await wait_until(breaker.can_execute)
    late = breaker._probes.pop()
    await link.run(["HSET", breaker.key, f"probe:{late}", "1"])
    assert await breaker.can_execute()
    assert not await breaker._do("ask", late)


async def _begins(records: TaskRecords, run: Run, breaker: SharedBreaker) -> bool:
    return not (await records.start(run, breaker)).refused
