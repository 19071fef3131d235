"""What is counted: the words for it, and an object that counts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conductor.core.channels import ChannelKind


class Metrics:
    """Takes what happened, from any thread; this one forgets it at once.

    `conductor.core.prometheus.PrometheusMetrics` counts. The values of labels are few: no ids, no channels.
    """

    enabled: bool = False
    """Whether counting is more than a waste of time."""

    def messages_published(self, kind: ChannelKind, count: int = 1) -> None:
        """Count messages that a bus was given to publish, but for expired ones."""

    def messages_delivered(self, kind: ChannelKind, count: int = 1) -> None:
        """Count messages that a callback was called with."""

    def messages_expired(self, count: int = 1) -> None:
        """Count messages dropped because their `ttl_seconds` were over, at publishing or at delivery."""

    def messages_dropped(self, reason: str, count: int = 1) -> None:
        """Count messages that were lost: `reason` is buffer_full, or invalid for what is no AgentMessage."""

    def message_refused(self, reason: str) -> None:
        """Count a message that was not let in, or not let out; `reason` is as `refused_as` has it."""

    def request_ended(self, outcome: str, seconds: float) -> None:
        """Count a request: `outcome` is answered, error, timeout, failed or cancelled."""

    def agents_expected(self, agent_types: Iterable[str], codes: Iterable[str]) -> None:
        """Begin at 0 what there will be to count of agents of these types, and of these retryable errors."""

    def task_waited(self, agent_type: str, seconds: float) -> None:
        """Note how long a task was in a queue."""

    def task_ran(self, agent_type: str, seconds: float) -> None:
        """Note how long an agent worked on a task, however that ended."""

    def task_ended(self, agent_type: str, outcome: str) -> None:
        """Count the end of a task: `outcome` is completed, failed or cancelled."""

    def task_retried(self, agent_type: str, code: str) -> None:
        """Count a task that failed and is tried again; `code` is one of the retryable errors."""

    def dead_letter(self, reason: str) -> None:
        """Count a message that became a dead letter."""


#: Why messages are refused.
REFUSED = ("too_large", "unsigned", "unknown_key", "altered", "stale", "replayed")


def refused_as(error_code: str) -> str:
    """Give the word for why a message was refused with MESSAGE_TOO_LARGE, MESSAGE_UNSIGNED and so on."""
    return error_code.removeprefix("MESSAGE_").lower()


#: For who was given none.
NO_METRICS = Metrics()
