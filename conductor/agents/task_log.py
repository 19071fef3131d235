"""Log lines that say which task and which agent they are about."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from conductor.core.models import TaskDefinition

# What would end the line, or be taken for a place of an argument.
_NOT_IN_A_LINE = re.compile(r"[%\s\x00-\x1f\x7f-\x9f]")


class TaskLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the ids before every line's text, and into the record as task_id, agent_id and workflow_id.

    The last is None for a task of no workflow. May be used from every thread.
    """

    def __init__(self, logger: logging.Logger, agent_id: str, task: TaskDefinition) -> None:
        workflow_id = task.metadata.get("workflow_id")
        self.ids = {"task_id": task.task_id, "agent_id": agent_id, "workflow_id": workflow_id}
        super().__init__(logger, self.ids)
        words = {"agent": agent_id, "task": task.task_id, "workflow": workflow_id}
        said = [
            f"{word} {_NOT_IN_A_LINE.sub('?', str(value)[:200])}"
            for word, value in words.items()
            if value is not None
        ]
        self.prefix = f"[{', '.join(said)}] "

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """See `logging.LoggerAdapter.process`; what the caller gives as `extra` is kept."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **self.ids}
        return f"{self.prefix}{msg}", kwargs


current_log: ContextVar[TaskLog | None] = ContextVar("conductor_task_log", default=None)
"""The log of the task that runs here: in its coroutine, and in the tasks and threads that this started."""


class TaskIds(logging.Filter):
    """Does to the lines of all other loggers, written while a task runs, what its TaskLog does to its own.

    It belongs on a handler, where the lines of all loggers come by: a node has it on the root logger's.
    A record factory would do it for the whole of a process that may be somebody else's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`; lets every record through."""
        log = current_log.get()
        if log is not None and not hasattr(record, "task_id"):
            vars(record).update(log.ids)
            record.msg = f"{log.prefix}{record.msg}"
        return True


def bind_task_ids(*loggers: logging.Logger) -> None:
    """Put a TaskIds on every handler these loggers have now."""
    task_ids = TaskIds()
    for logger in loggers:
        for handler in logger.handlers:
            handler.addFilter(task_ids)
