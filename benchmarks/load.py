"""The messages and entities that every peer handles alike."""

from conductor.core.enums import AgentStatus, AgentType, MessageType, TaskStatus
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition, TaskResult
from conductor.core.state import AgentState

PROBE = -1
"""The number of a message that only asks whether the subscription is there."""

_MESSAGE_TEXT = "ruff reports an unused import and a line that is too long; both can be mended by itself."


def make_message(number: int) -> AgentMessage:
    """Build and validate one message of about 500 bytes as JSON."""
    return AgentMessage(
        message_type=MessageType.STATUS_UPDATE,
        sender_id="benchmark-publisher",
        recipient_id="benchmark-subscriber",
        payload={"number": number, "status": "running", "progress_percent": 50.0, "message": _MESSAGE_TEXT},
        metadata={"workflow_id": "benchmark", "attempt": 1},
    )


def make_task(number: int) -> TaskDefinition:
    """Build the definition of one small task."""
    return TaskDefinition(
        name="echo",
        assigned_to=AgentType.CODING,
        input_data={"number": number, "text": _MESSAGE_TEXT},
        timeout_seconds=60,
    )


def run_task(task: TaskDefinition, agent_id: str) -> TaskResult:
    """Do what the small task asks: give its input back."""
    return TaskResult(
        task_id=task.task_id,
        agent_id=agent_id,
        status=TaskStatus.COMPLETED,
        output_data=task.input_data,
    )


def make_agent_state(number: int) -> AgentState:
    """Build the state of one agent that has done ten tasks."""
    return AgentState(
        agent_id=f"benchmark-{number:06}",
        agent_type=AgentType.CODING,
        status=AgentStatus.IDLE,
        completed_tasks=[f"task-{number}-{index}" for index in range(10)],
        metadata={"host": "benchmark", "attempt": 1},
    )


class Delivery:
    """Counts what arrives and tells when all of it has; a message counts by its number, once each."""

    def __init__(self) -> None:
        self.probes = 0
        self._missing: set[int] = set()
        self._expected = 0
        self._surplus = 0
        self._last = 0.0

    def expect(self, count: int) -> None:
        """Start over and wait for the numbers 0 to count - 1."""
        self._missing = set(range(count))
        self._expected, self._surplus, self._last = count, 0, 0.0

    def add(self, message: AgentMessage, now: float) -> None:
        """Count a message that arrived now (monotonic seconds, the same clock in every process)."""
        number = message.payload["number"]
        if number == PROBE:
            self.probes += 1
        elif number in self._missing:
            self._missing.discard(number)
            self._last = now
        else:
            self._surplus += 1

    @property
    def is_complete(self) -> bool:
        """Whether every expected message is there."""
        return not self._missing

    def report(self) -> dict[str, float]:
        """Tell how many arrived that were expected and that were not, and when the last one did."""
        return {
            "received": self._expected - len(self._missing),
            "surplus": self._surplus,
            "last": self._last,
        }
