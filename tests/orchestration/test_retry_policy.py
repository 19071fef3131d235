"""Which errors are tried again, and after how long."""

import pytest
from pydantic import ValidationError

from conductor.orchestration.error_handler import RetryPolicy


def test_defaults() -> None:
    assert RetryPolicy().model_dump() == {
        "max_retries": 3,
        "initial_delay": 1.0,
        "max_delay": 60.0,
        "backoff_multiplier": 2.0,
        "retryable_errors": ["LLM_TIMEOUT", "LLM_RATE_LIMIT", "TRANSIENT_ERROR"],
    }


@pytest.mark.parametrize("attempt", range(6))
def test_the_delay_grows_with_at_most_a_tenth_of_jitter(attempt: int) -> None:
    policy = RetryPolicy(initial_delay=0.5, backoff_multiplier=3, max_delay=1e6)
    delays = [policy.calculate_delay(attempt) for _ in range(200)]
    assert 0.5 * 3**attempt <= min(delays)
    assert max(delays) <= 0.5 * 3**attempt * 1.1
    assert len(set(delays)) > 1


@pytest.mark.parametrize("attempt", [6, 7, 100, 100_000])
def test_the_delay_never_exceeds_its_maximum(attempt: int) -> None:
    assert max(RetryPolicy().calculate_delay(attempt) for _ in range(200)) == 60.0


def test_a_delay_just_below_the_maximum_is_not_pushed_over_it() -> None:
    policy = RetryPolicy(initial_delay=59.9)
    assert max(policy.calculate_delay(0) for _ in range(200)) <= 60.0


@pytest.mark.parametrize("retries", [-1, 21])
def test_retries_are_bounded(retries: int) -> None:
    RetryPolicy(max_retries=0)
    RetryPolicy(max_retries=20)
    with pytest.raises(ValidationError, match="max_retries"):
        RetryPolicy(max_retries=retries)


def test_retryable_codes() -> None:
    assert RetryPolicy().is_retryable("LLM_TIMEOUT")
    assert not RetryPolicy().is_retryable("UNKNOWN_ERROR")
    assert RetryPolicy(retryable_errors=["MINE"]).is_retryable("MINE")
    assert not RetryPolicy(retryable_errors=["MINE"]).is_retryable("LLM_TIMEOUT")
