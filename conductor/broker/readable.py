"""How people see tasks in Celery's events, in Flower and in `celery inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.utils.saferepr import saferepr

if TYPE_CHECKING:
    from conductor.core.messages import AgentMessage
    from conductor.core.models import TaskDefinition

#: Characters of a name, and of input data, that are shown.
NAME_LIMIT, DATA_LIMIT = 100, 1000


def display_of_task(task: TaskDefinition, default: str) -> dict[str, str]:
    """Give a task its name, and its input as arguments, in the words that `as_task_v2` has for it."""
    return {
        "shadow": _one_line(task.name) or default,
        "argsrepr": "()",
        "kwargsrepr": saferepr(task.input_data, maxlen=DATA_LIMIT),
    }


def display_of_message(message: AgentMessage, agent_id: str) -> dict[str, str]:
    """Give a message that an agent is to answer its type, and its payload as arguments."""
    sender = _one_line(message.sender_id)
    return {
        "shadow": f"{message.message_type.value} from {sender}",
        "argsrepr": f"(to {agent_id!r})",
        "kwargsrepr": saferepr(message.payload, maxlen=DATA_LIMIT),
    }


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:NAME_LIMIT].strip()
