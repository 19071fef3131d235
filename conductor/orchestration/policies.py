"""The rule that allows or denies, and the rules that come with Conductor."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from conductor.core.enums import AgentStatus
from conductor.core.exceptions import ConfigurationError
from conductor.core.models import StrictModel
from conductor.core.urls import shown

MAX_TIMEOUT_SECONDS = 3600


class PolicyResult(StrictModel):
    """What a policy decided."""

    allowed: bool
    policy_name: str
    reason: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)


class Policy(ABC):
    """A rule about what may be done.

    The context holds what there is of: agent_states (by id), agent_state, task, workflow_state. A policy
    whose key is missing allows. Where a task is about to be dispatched, `reservation` is the id of this
    dispatch, and deciding takes two steps: `reserve`, then `confirm` or `release`.
    """

    needs: frozenset[str] = frozenset()
    """The keys, of agent_states and agent_state, that a Conductor reads for this policy before it asks."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name by which the policy is registered and reported."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One sentence for people."""

    @abstractmethod
    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        """Decide; what is raised counts as a denial."""

    async def reserve(self, context: Mapping[str, Any]) -> PolicyResult:
        """Decide, and take what the task takes, in one atomic step; by default it takes nothing.

        Of a denial nothing may be left. In its metadata, for those who wait, `waiting_helps` says whether it
        may pass without anybody's doing, and `retry_after` after how many seconds asking again makes sense.
        """
        return await self.evaluate(context)

    async def confirm(self, context: Mapping[str, Any]) -> None:  # noqa: B027 - most have no use for it
        """Hear that the task was sent."""

    async def release(self, context: Mapping[str, Any]) -> None:  # noqa: B027 - most have no use for it
        """Hear that the task was not sent, or has ended; perhaps nothing was reserved."""

    def _allow(self, **metadata: object) -> PolicyResult:
        return PolicyResult(allowed=True, policy_name=self.name, metadata=metadata)

    def _deny(self, reason: str, **metadata: object) -> PolicyResult:
        return PolicyResult(allowed=False, policy_name=self.name, reason=reason, metadata=metadata)


def bad_parameter(name: str, value: object, must: str) -> ConfigurationError:
    """Make the error of a policy's parameter; `details` name it and show the value."""
    return ConfigurationError(
        f"{name} must be {must}, not {shown(value)}.",
        details={"parameter": name, "value": shown(value), "must": must},
    )


class MaxConcurrentTasksPolicy(Policy):
    """Denies when `max_tasks` agents are RUNNING; 0 denies always, as for a pause."""

    needs = frozenset({"agent_states"})

    def __init__(self, max_tasks: int = 5) -> None:
        if max_tasks < 0:
            raise bad_parameter("max_tasks", max_tasks, "0 or more")
        self.max_tasks = max_tasks

    @property
    def name(self) -> str:
        """See `Policy.name`."""
        return "max_concurrent_tasks"

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        return f"At most {self.max_tasks} tasks run at the same time."

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        """See `Policy.evaluate`; reads agent_states, a mapping by id or a plain sequence."""
        states = context.get("agent_states")
        if states is None:
            return self._allow()
        every = states.values() if isinstance(states, Mapping) else states
        running = sum(state.status is AgentStatus.RUNNING for state in every)
        if running >= self.max_tasks:
            reason = f"{running} tasks are running, at most {self.max_tasks} may."
            return self._deny(reason, running=running, waiting_helps=True)
        return self._allow(running=running)


class TaskTimeoutPolicy(Policy):
    """Denies a task whose time limit is not between 0 and 3600 s, both excluded."""

    def __init__(self, default_timeout: float = 300.0) -> None:
        if not 0 < default_timeout < math.inf:
            raise bad_parameter("default_timeout", default_timeout, "more than 0 seconds")
        self.default_timeout = default_timeout

    @property
    def name(self) -> str:
        """See `Policy.name`."""
        return "task_timeout"

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        return f"A task's time limit ({self.default_timeout} s if it has none) is between 0 and 3600 s."

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        """See `Policy.evaluate`; reads task."""
        task = context.get("task")
        if task is None:
            return self._allow()
        timeout = self.default_timeout if task.timeout_seconds is None else task.timeout_seconds
        if 0 < timeout < MAX_TIMEOUT_SECONDS:
            return self._allow(timeout_seconds=timeout)
        return self._deny(
            f"The time limit of task {task.task_id} is {timeout} s; "
            f"it must be more than 0 s and less than {MAX_TIMEOUT_SECONDS} s.",
            timeout_seconds=timeout,
            waiting_helps=False,
        )


class PhaseGatePolicy(Policy):
    """Denies going on when too few of the workflow's tasks went well, or none."""

    def __init__(self, required_success_rate: float = 0.8) -> None:
        if not 0 <= required_success_rate <= 1:
            raise bad_parameter("required_success_rate", required_success_rate, "between 0 and 1")
        self.required_success_rate = required_success_rate

    @property
    def name(self) -> str:
        """See `Policy.name`."""
        return "phase_gate"

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        return f"The next phase begins when at least {self.required_success_rate:.0%} of the tasks went well."

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        """See `Policy.evaluate`; reads workflow_state."""
        state = context.get("workflow_state")
        if state is None:
            return self._allow()
        completed, failed = state.completed_task_count, state.failed_task_count
        if not completed:
            return self._deny("No task is completed.", completed=0, failed=failed)
        rate = completed / (completed + failed)
        if rate < self.required_success_rate:
            return self._deny(
                f"{rate:.0%} of the tasks went well, {self.required_success_rate:.0%} are required.",
                completed=completed,
                failed=failed,
            )
        return self._allow(completed=completed, failed=failed)


class AgentAvailabilityPolicy(Policy):
    """Denies an agent that is RUNNING or FAILED."""

    needs = frozenset({"agent_state"})

    @property
    def name(self) -> str:
        """See `Policy.name`."""
        return "agent_availability"

    @property
    def description(self) -> str:
        """See `Policy.description`."""
        return "A task goes to an agent that neither runs another one nor has failed."

    async def evaluate(self, context: Mapping[str, Any]) -> PolicyResult:
        """See `Policy.evaluate`; reads agent_state."""
        state = context.get("agent_state")
        if state is not None and state.status in (AgentStatus.RUNNING, AgentStatus.FAILED):
            facts = {"status": state.status.value, "waiting_helps": state.status is AgentStatus.RUNNING}
            return self._deny(f"Agent {state.agent_id} is {state.status}.", **facts)
        return self._allow()
