"""The breaker opens, waits, tries and closes."""

from typing import Any

import pytest

from conductor.core.exceptions import ConfigurationError
from conductor.orchestration.error_handler import CircuitBreaker, CircuitBreakerState


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def opened(clock: Clock, **settings: Any) -> CircuitBreaker:
    breaker = CircuitBreaker(clock=clock, **settings)
    for _ in range(breaker.failure_threshold):
        await breaker.record_failure()
    return breaker


async def half_open(clock: Clock, **settings: Any) -> CircuitBreaker:
    breaker = await opened(clock, **settings)
    clock.now += breaker.recovery_timeout
    assert await breaker.can_execute()
    return breaker


async def test_defaults() -> None:
    breaker = CircuitBreaker()
    assert (breaker.failure_threshold, breaker.recovery_timeout, breaker.success_threshold) == (5, 60.0, 2)
    assert breaker.state is CircuitBreakerState.CLOSED
    assert await breaker.can_execute()
    assert [state.value for state in CircuitBreakerState] == ["closed", "open", "half_open"]


async def test_it_opens_at_the_threshold_and_not_before() -> None:
    breaker = CircuitBreaker(failure_threshold=3)
    states = []
    for _ in range(3):
        await breaker.record_failure()
        states.append(breaker.state.value)
    assert states == ["closed", "closed", "open"]
    assert not await breaker.can_execute()


async def test_a_success_while_closed_resets_the_count() -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    for _ in range(3):
        await breaker.record_failure()
        await breaker.record_success()
    assert breaker.state is CircuitBreakerState.CLOSED


async def test_it_tries_again_once_the_recovery_time_is_over() -> None:
    clock = Clock()
    breaker = await opened(clock, recovery_timeout=10)
    clock.now += 9.99
    assert not await breaker.can_execute()
    clock.now += 0.01
    assert breaker.state.value == "open"
    assert await breaker.can_execute()
    assert breaker.state.value == "half_open"


async def test_enough_successes_close_it_and_the_count_starts_anew() -> None:
    breaker = await half_open(Clock(), failure_threshold=2)
    await breaker.record_success()
    states = [breaker.state.value]
    await breaker.record_success()
    states.append(breaker.state.value)
    await breaker.record_failure()
    states.append(breaker.state.value)
    assert states == ["half_open", "closed", "closed"]


async def test_a_failure_while_half_open_reopens_it_for_the_whole_time() -> None:
    clock = Clock()
    breaker = await half_open(clock)
    await breaker.record_success()
    await breaker.record_failure()
    clock.now += breaker.recovery_timeout - 0.01
    assert not await breaker.can_execute()
    clock.now += 0.01
    assert await breaker.can_execute()
    await breaker.record_success()
    assert breaker.state is CircuitBreakerState.HALF_OPEN


async def test_late_news_do_not_change_an_open_breaker() -> None:
    clock = Clock()
    breaker = await opened(clock, recovery_timeout=10)
    clock.now += 5
    await breaker.record_failure()
    await breaker.record_success()
    assert breaker.state.value == "open"
    clock.now += 5
    assert await breaker.can_execute()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("failure_threshold", 0),
        ("success_threshold", 0),
        ("recovery_timeout", -1),
        ("recovery_timeout", float("nan")),
    ],
)
def test_bad_settings_are_named(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        CircuitBreaker(**settings)
