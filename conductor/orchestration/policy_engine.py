"""Policies asked together, in the order in which they were registered."""

import logging
from collections.abc import Mapping
from typing import Any

from conductor.core.exceptions import PolicyViolationError
from conductor.orchestration.policies import (
    AgentAvailabilityPolicy,
    MaxConcurrentTasksPolicy,
    PhaseGatePolicy,
    Policy,
    PolicyResult,
    TaskTimeoutPolicy,
)

__all__ = [
    "AgentAvailabilityPolicy",
    "MaxConcurrentTasksPolicy",
    "PhaseGatePolicy",
    "Policy",
    "PolicyEngine",
    "PolicyResult",
    "TaskTimeoutPolicy",
]

logger = logging.getLogger(__name__)


class PolicyEngine:
    """Holds policies by name; one registered under a name in use takes that one's place."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}

    @property
    def policies(self) -> list[Policy]:
        """A copy of the list, in order."""
        return list(self._policies.values())

    @property
    def policy_count(self) -> int:
        """How many policies are registered."""
        return len(self._policies)

    def register_policy(self, policy: Policy) -> None:
        """Ask `policy` from now on."""
        self._policies[policy.name] = policy

    def unregister_policy(self, name: str) -> bool:
        """Stop asking a policy; False if there is none of this name."""
        return self._policies.pop(name, None) is not None

    async def evaluate_all(self, context: Mapping[str, Any]) -> list[PolicyResult]:
        """Ask every policy, in order, also after a denial."""
        return [await self._evaluate(policy, context) for policy in self.policies]

    async def enforce(self, context: Mapping[str, Any]) -> None:
        """Raise PolicyViolationError, code POLICY_VIOLATION, at the first denial."""
        for policy in self.policies:
            result = await self._evaluate(policy, context)
            if not result.allowed:
                raise PolicyViolationError(
                    f"Policy {result.policy_name!r} denies it: {result.reason}",
                    result.policy_name,
                    result.reason,
                    details={"metadata": result.metadata},
                )

    async def check(self, context: Mapping[str, Any]) -> bool:
        """Tell whether every policy allows."""
        return all(result.allowed for result in await self.evaluate_all(context))

    async def _evaluate(self, policy: Policy, context: Mapping[str, Any]) -> PolicyResult:
        try:
            return await policy.evaluate(context)
        except Exception as error:
            logger.exception("policy %s raised, which counts as a denial", policy.name)
            reason = f"it raised {type(error).__name__}: {error}"
            return PolicyResult(allowed=False, policy_name=policy.name, reason=reason)
