"""Policies asked together, in the order in which they were registered."""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from conductor.orchestration.quotas import QuotaStore
from conductor.orchestration.shared_policies import (
    AgentTypeConcurrencyPolicy,
    BudgetPolicy,
    RateLimitPolicy,
    SharedPolicy,
)

__all__ = [
    "AgentAvailabilityPolicy",
    "AgentTypeConcurrencyPolicy",
    "BudgetPolicy",
    "MaxConcurrentTasksPolicy",
    "PhaseGatePolicy",
    "Policy",
    "PolicyEngine",
    "PolicyResult",
    "RateLimitPolicy",
    "Reservation",
    "SharedPolicy",
    "TaskTimeoutPolicy",
]

logger = logging.getLogger(__name__)

#: What a context may hold.
_KEYS = frozenset({"agent_states", "agent_state", "task", "workflow_state"})


class Reservation:
    """What policies let one dispatch of a task take; `confirm` it once the task was sent, or `release` it.

    Both may be called more than once and raise nothing: a policy that fails is logged, and counted in
    `failures`, by its name. Shared policies give back by themselves what is neither confirmed nor released.
    """

    def __init__(
        self, policies: Sequence[Policy], context: Mapping[str, Any], failures: Counter[str] | None = None
    ) -> None:
        self._policies = policies
        self._context = context
        self.failures: Counter[str] = Counter() if failures is None else failures

    @property
    def id(self) -> str:
        """The id of this dispatch, `reservation` in the policies' context."""
        return str(self._context["reservation"])

    async def confirm(self) -> None:
        """Tell the policies that the task was sent."""
        for policy in self._policies:
            await self._tell(policy.confirm, policy, "confirmed")

    async def release(self) -> None:
        """Tell the policies that the task was not sent, or has ended."""
        for policy in reversed(self._policies):
            await self._tell(policy.release, policy, "released")

    async def _tell(
        self, step: Callable[[Mapping[str, Any]], Awaitable[None]], policy: Policy, done: str
    ) -> None:
        try:
            await step(self._context)
        except Exception:
            self.failures[policy.name] += 1
            task_id = getattr(self._context.get("task"), "task_id", None)
            logger.exception(
                "reservation %s of task %s with policy %s is not %s", self.id, task_id, policy.name, done
            )


class PolicyEngine:
    """Holds policies by name; one registered under a name in use takes that one's place."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._failures: Counter[str] = Counter()
        self._store: QuotaStore | None = None

    @property
    def policies(self) -> list[Policy]:
        """A copy of the list, in order."""
        return list(self._policies.values())

    @property
    def policy_count(self) -> int:
        """How many policies are registered."""
        return len(self._policies)

    @property
    def needs(self) -> frozenset[str]:
        """What has to be read before the policies are asked; see `Policy.needs`."""
        return frozenset().union(*(policy.needs for policy in self._policies.values()))

    @property
    def failures(self) -> dict[str, int]:
        """How often policies raised something instead of doing what they were asked for, by their names."""
        return dict(self._failures)

    def register_policy(self, policy: Policy) -> None:
        """Ask `policy` from now on."""
        self._policies[policy.name] = policy
        if self._store is not None and isinstance(policy, SharedPolicy):
            policy.attach(self._store)

    def attach(self, store: QuotaStore) -> None:
        """Have the shared policies keep their numbers in `store`, also those that are registered later."""
        self._store = store
        for policy in self._policies.values():
            if isinstance(policy, SharedPolicy):
                policy.attach(store)

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
                raise _violation(result)

    async def reserve(self, context: Mapping[str, Any]) -> Reservation:
        """Have every policy decide and reserve, in order, for one dispatch of a task.

        At the first denial what was reserved is given back and PolicyViolationError, code POLICY_VIOLATION,
        is raised; also when this coroutine is cancelled nothing stays reserved.
        """
        asked: list[Policy] = []
        context = {"reservation": uuid.uuid4().hex, **context}
        reservation = Reservation(asked, context, self._failures)
        try:
            for policy in self.policies:
                await self._reserve(policy, context, asked)
        except BaseException:
            if asked:
                await asyncio.shield(reservation.release())
            raise
        return reservation

    async def check(self, context: Mapping[str, Any]) -> bool:
        """Tell whether every policy allows."""
        return all(result.allowed for result in await self.evaluate_all(context))

    async def _evaluate(self, policy: Policy, context: Mapping[str, Any]) -> PolicyResult:
        try:
            return _decision(await policy.evaluate(context))
        except Exception as error:  # noqa: BLE001 - it is logged as a denial
            return self._raised(policy, error, context)

    async def _reserve(self, policy: Policy, context: Mapping[str, Any], asked: list[Policy]) -> None:
        """Have one policy reserve, and note it first: one that raises or is cancelled may have reserved."""
        asked.append(policy)
        try:
            result = _decision(await policy.reserve(context))
        except Exception as error:
            result = self._raised(policy, error, context)
            if result.allowed:
                return
            raise _violation(result) from error
        if not result.allowed:
            asked.pop()
            raise _violation(result)

    def _raised(self, policy: Policy, error: Exception, context: Mapping[str, Any]) -> PolicyResult:
        if isinstance(error, KeyError) and error.args[:1] and error.args[0] in _KEYS - context.keys():
            # It is about something else, and did not look whether that is there.
            return PolicyResult(allowed=True, policy_name=policy.name)
        self._failures[policy.name] += 1
        logger.error("policy %s raised, which counts as a denial", policy.name, exc_info=error)
        reason = f"it raised {type(error).__name__}: {error}"
        return PolicyResult(allowed=False, policy_name=policy.name, reason=reason)


def _decision(given: object) -> PolicyResult:
    if isinstance(given, PolicyResult):
        return given
    raise TypeError(f"a policy decides with a PolicyResult, not with {given!r:.80}")


def _violation(result: PolicyResult) -> PolicyViolationError:
    return PolicyViolationError(
        f"Policy {result.policy_name!r} denies it: {result.reason}",
        result.policy_name,
        result.reason,
        details={"metadata": result.metadata},
    )
