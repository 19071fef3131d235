"""The fixed words of the vocabulary; every member is its lower-case name as a string."""

from enum import StrEnum


class AgentType(StrEnum):
    """What an agent is able to do."""

    CODING = "coding"
    REVIEW = "review"
    TEST_DATA = "test_data"
    TEST = "test"
    DEVOPS = "devops"
    DEPLOYING = "deploying"
    MONITOR = "monitor"


class AgentStatus(StrEnum):
    """What an agent is doing now."""

    IDLE = "idle"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WorkflowPhase(StrEnum):
    """The stretches of a workflow, in the order in which they run."""

    DEVELOPMENT = "development"
    DEVOPS = "devops"
    MONITORING = "monitoring"


class MessageType(StrEnum):
    """What a message is about, and so what its payload looks like."""

    TASK_ASSIGNMENT = "task_assignment"
    TASK_RESULT = "task_result"
    STATUS_UPDATE = "status_update"
    ERROR = "error"
    FEEDBACK = "feedback"
    CONTROL = "control"


class Priority(StrEnum):
    """How urgent a task or message is, from the least to the most."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class TaskStatus(StrEnum):
    """How far a task or a workflow is."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    BLOCKED = "blocked"
    SKIPPED = "skipped"
