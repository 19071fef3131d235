"""A breaker that keeps work away from an agent that keeps failing."""

import time
from collections.abc import Callable
from enum import StrEnum

from conductor.core.exceptions import ConfigurationError


class CircuitBreakerState(StrEnum):
    """CLOSED lets work through, OPEN does not, HALF_OPEN tries whether it would go well again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Opens after `failure_threshold` failures in a row and tries again `recovery_timeout` seconds later.

    Its methods belong to one event loop. `clock` gives monotonic seconds. A bad threshold or time is a
    ConfigurationError.
    """

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        success_threshold: int = 2,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, count in (
            ("failure_threshold", failure_threshold),
            ("success_threshold", success_threshold),
        ):
            if count < 1:
                raise ConfigurationError(f"{name} of a circuit breaker must be at least 1, not {count}.")
        if not recovery_timeout >= 0:
            raise ConfigurationError(
                f"recovery_timeout of a circuit breaker must be 0 s or more, not {recovery_timeout}."
            )
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self.success_threshold = success_threshold
        self._clock = clock
        self._state = CircuitBreakerState.CLOSED
        self._failures = 0
        self._successes = 0
        self._opened_at = 0.0

    @property
    def state(self) -> CircuitBreakerState:
        """The state as of the last call; time alone does not change it."""
        return self._state

    async def can_execute(self) -> bool:
        """Tell whether work may go through; once the recovery time is over this makes it HALF_OPEN."""
        if (
            self._state is CircuitBreakerState.OPEN
            and self._clock() - self._opened_at >= self.recovery_timeout
        ):
            self._state = CircuitBreakerState.HALF_OPEN
            self._successes = 0
        return self._state is not CircuitBreakerState.OPEN

    async def record_success(self) -> None:
        """Note that work went well."""
        if self._state is CircuitBreakerState.CLOSED:
            self._failures = 0
        elif self._state is CircuitBreakerState.HALF_OPEN:
            self._successes += 1
            if self._successes >= self.success_threshold:
                self._state = CircuitBreakerState.CLOSED
                self._failures = 0

    async def record_failure(self) -> None:
        """Note that work failed; what fails late, when the breaker is OPEN already, changes nothing."""
        if self._state is CircuitBreakerState.OPEN:
            return
        self._failures += 1
        if self._state is CircuitBreakerState.HALF_OPEN or self._failures >= self.failure_threshold:
            self._state = CircuitBreakerState.OPEN
            self._opened_at = self._clock()
