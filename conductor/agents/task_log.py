"""Log lines that say which task and which agent they are about."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from conductor.core.log_ids import TaskIds, in_words

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from conductor.core.models import TaskDefinition

__all__ = ["TaskIds", "TaskLog"]


class TaskLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the ids before every line's text, and into the record as task_id, agent_id and workflow_id.

    The last is None for a task of no workflow. May be used from every thread.
    """

    def __init__(self, logger: logging.Logger, agent_id: str, task: TaskDefinition) -> None:
        workflow_id = task.metadata.get("workflow_id")
        self.ids = {"task_id": task.task_id, "agent_id": agent_id, "workflow_id": workflow_id}
        super().__init__(logger, self.ids)
        self.prefix = in_words(self.ids)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """See `logging.LoggerAdapter.process`; what the caller gives as `extra` is kept."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **self.ids, "log_prefix": self.prefix}
        return f"{self.prefix}{msg}", kwargs
