"""Which agents live, going by their heartbeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conductor.core.enums import AgentStatus
from conductor.core.fields import utc_now

if TYPE_CHECKING:
    from conductor.core.config import ConductorConfig
    from conductor.core.state import AgentState

#: Seconds an agent may miss beyond three heartbeats before it counts as gone.
HEARTBEAT_SLACK = 5.0


def heartbeat_limit(config: ConductorConfig) -> float:
    """Give the seconds without a heartbeat after which an agent counts as gone."""
    return 3 * config.node.heartbeat_interval + HEARTBEAT_SLACK


def heartbeat_age(agent: AgentState) -> float | None:
    """Give the seconds since an agent's last heartbeat, by this machine's clock; None where it had none."""
    return None if agent.last_heartbeat is None else (utc_now() - agent.last_heartbeat).total_seconds()


def is_over(agent: AgentState) -> bool:
    """Tell whether an agent said itself that it has ended."""
    return agent.status in (AgentStatus.CANCELLED, AgentStatus.FAILED)


def lives(agent: AgentState, limit: float) -> bool:
    """Tell whether an agent has not ended and gave a heartbeat within the last `limit` seconds."""
    age = heartbeat_age(agent)
    return age is not None and age < limit and not is_over(agent)
