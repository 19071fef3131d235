"""When a failed task is tried again, and how long to wait before."""

import random

from pydantic import Field

from conductor.core.models import StrictModel

MAX_JITTER = 0.1


class RetryPolicy(StrictModel):
    """Which errors are worth another try; delays in seconds, times `backoff_multiplier` each attempt."""

    max_retries: int = Field(default=3, ge=0, le=20)
    initial_delay: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_delay: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    backoff_multiplier: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    retryable_errors: list[str] = Field(
        default_factory=lambda: ["LLM_TIMEOUT", "LLM_RATE_LIMIT", "TRANSIENT_ERROR"]
    )

    def calculate_delay(self, attempt: int) -> float:
        """Give the seconds to wait after `attempt` (from 0), with up to 10 % jitter, at most `max_delay`."""
        try:
            delay = self.initial_delay * self.backoff_multiplier**attempt
        except OverflowError:
            return self.max_delay
        jitter = delay * MAX_JITTER * random.random()  # noqa: S311  spreads load, guards nothing
        return min(delay + jitter, self.max_delay)

    def is_retryable(self, error_code: str) -> bool:
        """Tell whether an error with this code is worth another try."""
        return error_code in self.retryable_errors
