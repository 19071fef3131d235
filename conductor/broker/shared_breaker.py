"""The circuit breaker of a type of agents, shared by all processes through Redis."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from conductor.broker.results import script
from conductor.orchestration.circuit_breaker import CircuitBreakerState

if TYPE_CHECKING:
    from conductor.core.config import BreakerConfig, ConductorConfig
    from conductor.core.enums import AgentType
    from conductor.store.link import Link

logger = logging.getLogger(__name__)

#: Seconds that a probe without a time limit may take before it counts as lost.
PROBE_SECONDS = 3900
#: Seconds that the end of a probe may take to be filed after its time limit, or to be delivered again.
PROBE_SLACK = 30


def breaker_of(link: Link, agent_type: AgentType, config: ConductorConfig) -> SharedBreaker:
    """Give the breaker of the agents of a type, as it is configured."""
    return SharedBreaker(link, agent_type.value, config.errors.breaker, config.redis.key_prefix)


class SharedBreaker:
    """What `CircuitBreaker` is in one process; each method is one atomic step on the server, by its clock.

    Half open, it lets through as many probes as have to go well to close it, whoever asks, and no more until
    they have ended, or have taken longer than they may. Belongs to the event loop of `link`; StateError.
    """

    def __init__(self, link: Link, name: str, config: BreakerConfig, prefix: str = "conductor:") -> None:
        self.key = f"{prefix}breaker:{name}"
        self._link = link
        self.name = name
        self._config = config
        self._probes: list[str] = []

    def rules(self, limit: float | None = None) -> list[str | int]:
        """Give what the scripts go by; a probe is killed after `limit` seconds, None for never."""
        seconds = PROBE_SECONDS if limit is None else limit + PROBE_SLACK
        recovery = round(self._config.recovery_timeout * 1000)
        return [
            self._config.failure_threshold,
            recovery,
            self._config.success_threshold,
            round(seconds * 1000),
        ]

    async def can_execute(self) -> bool:
        """Tell whether work may go through; a probe that may has to be followed by one of the records."""
        probe = uuid.uuid4().hex
        allowed = bool(await self._do("ask", probe))
        if allowed:
            self._probes.append(probe)
        return allowed

    async def record_success(self) -> None:
        """Note that work went well."""
        await self._do("success", self._probe())

    async def record_failure(self) -> None:
        """Note that work failed."""
        if await self._do("failure", self._probe()):
            self.log_opening()

    async def forget(self, probe: str) -> None:
        """Take back a probe of which nobody knows how it went."""
        await self._do("forget", probe)

    async def state(self) -> CircuitBreakerState:
        """The state as of the last call of anybody; time alone does not change it."""
        word = await self._do("state", "")
        return CircuitBreakerState(word.decode() if isinstance(word, bytes) else word)

    def log_opening(self) -> None:
        """Say that the last failure opened it."""
        logger.error(
            "The circuit breaker of %s opens: tasks become dead letters for %g s",
            self.name,
            self._config.recovery_timeout,
        )

    def _probe(self) -> str:
        return self._probes.pop(0) if self._probes else ""

    async def _do(self, what: str, probe: str) -> Any:
        source = script("breaker", "use_breaker")
        return await self._link.run(["EVAL", source, 1, self.key, what, probe, *self.rules()], self.key)
