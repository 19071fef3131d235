"""The rules that come with Conductor about amounts which tasks share, across processes."""

import math
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from conductor.core.enums import AgentType
from conductor.orchestration.policies import Policy, PolicyResult, bad_parameter
from conductor.orchestration.quotas import Answer, Claim, InMemoryQuotaStore, Lasts, Quota, QuotaStore

Demand = tuple[Quota, Claim]


class SharedPolicy(Policy):
    """Denies a task that wants more of a quota than is left.

    `evaluate` tells what would be decided and takes nothing. The numbers are this object's own until `attach`
    names another store, as a connected Conductor does: one that all processes share.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise bad_parameter("name", name, "at least one character")
        self._name = name
        self._store: QuotaStore = InMemoryQuotaStore()

    @property
    def name(self) -> str:
        """See `Policy.name`."""
        return self._name

    def attach(self, store: QuotaStore) -> None:
        """Keep the numbers in `store` from now on."""
        self._store = store

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        """See `Policy.evaluate`; reads task, and agent_state if there is one."""
        return await self._ask(context, self._store.look)

    async def reserve(self, context: Mapping[str, Any]) -> PolicyResult:
        """See `Policy.reserve`."""
        return await self._ask(context, self._store.reserve)

    async def confirm(self, context: Mapping[str, Any]) -> None:
        """See `Policy.confirm`."""
        demand = self._demand(context)
        if isinstance(demand, tuple):
            await self._store.confirm(*demand)

    async def release(self, context: Mapping[str, Any]) -> None:
        """See `Policy.release`."""
        demand = self._demand(context)
        if isinstance(demand, tuple):
            await self._store.release(*demand)

    @abstractmethod
    def _demand(self, context: Mapping[str, Any]) -> Demand | PolicyResult:
        """Say what the task takes of which quota, or decide without one."""

    @abstractmethod
    def _reason(self, quota: Quota, claim: Claim, answer: Answer) -> str:
        """Say why a claim is denied."""

    async def _ask(
        self, context: Mapping[str, Any], ask: Callable[[Quota, Claim], Awaitable[Answer]]
    ) -> PolicyResult:
        demand = self._demand(context)
        if isinstance(demand, PolicyResult):
            return demand
        quota, claim = demand
        answer = await ask(quota, claim)
        facts: dict[str, float] = {"used": answer.used, "limit": quota.limit}
        if answer.granted:
            return self._allow(**facts)
        if answer.retry_after is not None:
            facts["retry_after"] = answer.retry_after
        return self._deny(self._reason(quota, claim, answer), **facts, waiting_helps=not answer.final)


class AgentTypeConcurrencyPolicy(SharedPolicy):
    """Denies a task when as many tasks for agents of its type as `limits` says are under way.

    A task is under way from its dispatch to its end, also while it waits in a queue or to be tried again.
    Types that `limits` does not name have no limit; 0 denies always, as for a pause.
    """

    needs = frozenset({"agent_state"})

    def __init__(self, limits: Mapping[str, int], name: str = "agent_type_concurrency") -> None:
        super().__init__(name)
        kinds = ", ".join(AgentType)
        if not isinstance(limits, Mapping) or not limits:
            raise bad_parameter("limits", limits, f"a mapping from types of agents ({kinds}) to numbers")
        for kind, limit in limits.items():
            if kind not in list(AgentType):
                raise bad_parameter("limits", kind, f"a mapping from types of agents ({kinds})")
            if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
                raise bad_parameter(f"limits.{AgentType(kind)}", limit, "a whole number of 0 or more")
        self.limits = {AgentType(kind): limit for kind, limit in limits.items()}

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        limits = ", ".join(f"{limit} for {kind} agents" for kind, limit in self.limits.items())
        return f"At most so many tasks are under way at the same time: {limits}."

    def _demand(self, context: Mapping[str, Any]) -> Demand | PolicyResult:
        kind = _agent_type(context)
        if kind is None or kind not in self.limits:
            return self._allow()
        return Quota(f"{self.name}:{kind}", self.limits[kind], Lasts.TASK), _claim(context)

    def _reason(self, quota: Quota, claim: Claim, answer: Answer) -> str:
        kind = quota.key.rpartition(":")[2]
        return (
            f"As many tasks for {kind} agents are under way as may be at the same time: {answer.used:g} of "
            f"at most {quota.limit:g}."
        )


class RateLimitPolicy(SharedPolicy):
    """Denies a task when `max_tasks` were dispatched within the last `period_seconds`.

    The period ends with every moment anew: in none of this length more tasks are sent. With
    `per="agent_type"` the tasks for agents of each type are counted by themselves. `max_tasks` 0 denies
    always.
    """

    def __init__(
        self,
        max_tasks: int,
        period_seconds: float,
        per: Literal["all", "agent_type"] = "all",
        name: str = "rate_limit",
    ) -> None:
        super().__init__(name)
        if max_tasks < 0:
            raise bad_parameter("max_tasks", max_tasks, "0 or more")
        if not 0 < period_seconds < math.inf:
            raise bad_parameter("period_seconds", period_seconds, "more than 0 seconds")
        if per not in ("all", "agent_type"):
            raise bad_parameter("per", per, "'all' or 'agent_type'")
        self.max_tasks, self.period_seconds, self.per = max_tasks, period_seconds, per
        if per == "agent_type":
            self.needs = frozenset({"agent_state"})

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        each = " for each type of agents" if self.per == "agent_type" else ""
        return f"At most {self.max_tasks} tasks are dispatched within {self.period_seconds:g} s{each}."

    def _demand(self, context: Mapping[str, Any]) -> Demand | PolicyResult:
        if context.get("task") is None:
            return self._allow()
        whose = (_agent_type(context) or "any") if self.per == "agent_type" else "all"
        quota = Quota(f"{self.name}:{whose}", self.max_tasks, Lasts.PERIOD, self.period_seconds)
        return quota, _claim(context)

    def _reason(self, quota: Quota, claim: Claim, answer: Answer) -> str:
        kind = quota.key.rpartition(":")[2]
        what = f"tasks for {kind} agents" if self.per == "agent_type" else "tasks"
        left = answer.retry_after
        soon = "" if left is None else f"; the next one may follow in {left:.3g} s"
        return (
            f"As many {what} were dispatched within the last {self.period_seconds:g} s as may be: "
            f"{answer.used:g} of at most {self.max_tasks}{soon}."
        )


class BudgetPolicy(SharedPolicy):
    """Denies a task whose cost would make the costs of its workflow's tasks exceed `limit`.

    The cost is the number in `task.metadata[cost_key]`, 0 where there is none, the workflow the one in
    `task.metadata["workflow_id"]`; a task that belongs to no workflow has no budget. What is no number of 0
    or more is a denial. Whoever runs a task again pays again.
    """

    def __init__(self, limit: float, cost_key: str = "cost", name: str = "budget") -> None:
        super().__init__(name)
        if not 0 <= limit < math.inf:
            raise bad_parameter("limit", limit, "0 or more")
        if not cost_key:
            raise bad_parameter("cost_key", cost_key, "at least one character")
        self.limit, self.cost_key = limit, cost_key

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        return f"The tasks of a workflow cost at most {self.limit:g}, going by their {self.cost_key!r}."

    def _demand(self, context: Mapping[str, Any]) -> Demand | PolicyResult:
        task = context.get("task")
        if task is None:
            return self._allow()
        given = task.metadata.get(self.cost_key, 0)
        cost = _number(given)
        if cost is None:
            return self._deny(
                f"The {self.cost_key!r} in the metadata of task {task.task_id} is {given!r}; it must be a "
                "number of 0 or more.",
                cost=repr(given),
                waiting_helps=False,
            )
        workflow_id = task.metadata.get("workflow_id")
        if workflow_id is None or not cost:
            return self._allow(cost=cost)
        return Quota(f"{self.name}:{workflow_id}", self.limit, Lasts.EVER), _claim(context, cost)

    def _reason(self, quota: Quota, claim: Claim, answer: Answer) -> str:
        workflow_id = quota.key.removeprefix(f"{self.name}:")
        return (
            f"It costs {claim.amount:g}, and of the budget of workflow {workflow_id}, {quota.limit:g}, "
            f"{answer.used:g} is spent."
        )


def _agent_type(context: Mapping[str, Any]) -> AgentType | None:
    """Give the type of the agent that a task is for; the one agent that was named decides."""
    agent, task = context.get("agent_state"), context.get("task")
    if task is None:
        return None
    kind: AgentType | None = task.assigned_to if agent is None else agent.agent_type
    return kind


def _claim(context: Mapping[str, Any], amount: float = 1.0) -> Claim:
    return Claim(context.get("reservation", "-"), context["task"].task_id, amount)


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 <= number < math.inf else None
