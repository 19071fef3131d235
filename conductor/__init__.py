"""Durable, observable, distributed work for asyncio agents.

Everything public is here; a name is imported when it is first looked at, so that `import conductor` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conductor.agents.base import BaseAgent
    from conductor.agents.context import TaskContext
    from conductor.agents.function import agent
    from conductor.broker.dead_letter_queue import DeadLetterQueue
    from conductor.client import Conductor, TaskHandle
    from conductor.core.config import ConductorConfig, load_config
    from conductor.core.dead_letters import DeadLetter, DeadLetterReason
    from conductor.core.enums import (
        AgentStatus,
        AgentType,
        MessageType,
        Priority,
        TaskStatus,
        WorkflowPhase,
    )
    from conductor.core.exceptions import (
        AgentError,
        ConductorError,
        ConfigurationError,
        MessageBusError,
        PolicyViolationError,
        StateError,
        WorkflowError,
    )
    from conductor.core.log_lines import configure_logging
    from conductor.core.messages import (
        AgentMessage,
        ErrorPayload,
        FeedbackPayload,
        StatusUpdatePayload,
        TaskAssignmentPayload,
        TaskResultPayload,
    )
    from conductor.core.models import AgentIdentity, TaskDefinition, TaskResult, WorkflowDefinition
    from conductor.core.state import AgentState, WorkflowState
    from conductor.factory import create_message_bus, create_state_manager
    from conductor.orchestration.agent_coordinator import AgentCoordinator
    from conductor.orchestration.error_handler import ErrorHandler
    from conductor.orchestration.message_bus import InMemoryMessageBus, MessageBus
    from conductor.orchestration.policy_engine import (
        AgentAvailabilityPolicy,
        AgentTypeConcurrencyPolicy,
        BudgetPolicy,
        MaxConcurrentTasksPolicy,
        PhaseGatePolicy,
        Policy,
        PolicyEngine,
        PolicyResult,
        RateLimitPolicy,
        TaskTimeoutPolicy,
    )
    from conductor.orchestration.state_manager import InMemoryStateManager, StateManager
    from conductor.orchestration.workflow_engine import WorkflowEngine

__version__ = "0.1.0"

_HOMES = {
    "conductor.agents.base": ["BaseAgent"],
    "conductor.agents.context": ["TaskContext"],
    "conductor.agents.function": ["agent"],
    "conductor.broker.dead_letter_queue": ["DeadLetterQueue"],
    "conductor.client": ["Conductor", "TaskHandle"],
    "conductor.core.config": ["ConductorConfig", "load_config"],
    "conductor.core.dead_letters": ["DeadLetter", "DeadLetterReason"],
    "conductor.core.enums": [
        "AgentStatus",
        "AgentType",
        "MessageType",
        "Priority",
        "TaskStatus",
        "WorkflowPhase",
    ],
    "conductor.core.exceptions": [
        "AgentError",
        "ConductorError",
        "ConfigurationError",
        "MessageBusError",
        "PolicyViolationError",
        "StateError",
        "WorkflowError",
    ],
    "conductor.core.log_lines": ["configure_logging"],
    "conductor.core.messages": [
        "AgentMessage",
        "ErrorPayload",
        "FeedbackPayload",
        "StatusUpdatePayload",
        "TaskAssignmentPayload",
        "TaskResultPayload",
    ],
    "conductor.core.models": ["AgentIdentity", "TaskDefinition", "TaskResult", "WorkflowDefinition"],
    "conductor.core.state": ["AgentState", "WorkflowState"],
    "conductor.factory": ["create_message_bus", "create_state_manager"],
    "conductor.orchestration.agent_coordinator": ["AgentCoordinator"],
    "conductor.orchestration.error_handler": ["ErrorHandler"],
    "conductor.orchestration.message_bus": ["InMemoryMessageBus", "MessageBus"],
    "conductor.orchestration.policy_engine": [
        "AgentAvailabilityPolicy",
        "AgentTypeConcurrencyPolicy",
        "BudgetPolicy",
        "MaxConcurrentTasksPolicy",
        "PhaseGatePolicy",
        "Policy",
        "PolicyEngine",
        "PolicyResult",
        "RateLimitPolicy",
        "TaskTimeoutPolicy",
    ],
    "conductor.orchestration.state_manager": ["InMemoryStateManager", "StateManager"],
    "conductor.orchestration.workflow_engine": ["WorkflowEngine"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AgentAvailabilityPolicy",
    "AgentCoordinator",
    "AgentError",
    "AgentIdentity",
    "AgentMessage",
    "AgentState",
    "AgentStatus",
    "AgentType",
    "AgentTypeConcurrencyPolicy",
    "BaseAgent",
    "BudgetPolicy",
    "Conductor",
    "ConductorConfig",
    "ConductorError",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterQueue",
    "DeadLetterReason",
    "ErrorHandler",
    "ErrorPayload",
    "FeedbackPayload",
    "InMemoryMessageBus",
    "InMemoryStateManager",
    "MaxConcurrentTasksPolicy",
    "MessageBus",
    "MessageBusError",
    "MessageType",
    "PhaseGatePolicy",
    "Policy",
    "PolicyEngine",
    "PolicyResult",
    "PolicyViolationError",
    "Priority",
    "RateLimitPolicy",
    "StateError",
    "StateManager",
    "StatusUpdatePayload",
    "TaskAssignmentPayload",
    "TaskContext",
    "TaskDefinition",
    "TaskHandle",
    "TaskResult",
    "TaskResultPayload",
    "TaskStatus",
    "TaskTimeoutPolicy",
    "WorkflowDefinition",
    "WorkflowEngine",
    "WorkflowError",
    "WorkflowPhase",
    "WorkflowState",
    "agent",
    "configure_logging",
    "create_message_bus",
    "create_state_manager",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'conductor' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
