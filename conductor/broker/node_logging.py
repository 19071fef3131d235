"""The log lines of a node: Celery's handlers with our format, and the ids of the task a line is about."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import celery.apps.worker
from celery import signals
from celery.utils.log import get_multiprocessing_logger

from conductor.core.log_ids import bound_ids
from conductor.core.log_lines import LineFormatter, configure_structlog, formatter_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conductor.broker.node_request import NodeRequest
    from conductor.broker.node_spec import NodeSpec

#: What the names of our own threads begin with; they do not work for the task that runs beside them.
_OWN_THREADS = "conductor"
_WARNINGS = "py.warnings"


class NodeLogging:
    """Formats what a node logs, in its parent process and, after the fork, in its child.

    A line about no task names the node, and its agent if there is but one.
    """

    def __init__(self, hostname: str, spec: NodeSpec, log_format: str) -> None:
        self._log_format = log_format
        self._node: dict[str, Any] = {"node": hostname}
        if len(spec.agents) == 1:
            self._node["agent_id"] = spec.agents[0].agent_id
        self._spec = spec
        self._requests: WeakValueDictionary[str, NodeRequest] = WeakValueDictionary()
        self._running: Mapping[str, Any] = {}
        self._binding: Any = None
        self.style = "console"
        self._early: logging.Handler | None = None

    def connect(self) -> None:
        """Take over what Celery sets up; a program that answers its signal `setup_logging` keeps its own."""
        signals.after_setup_logger.connect(self._on_setup, weak=False)
        signals.after_setup_task_logger.connect(self._on_setup, weak=False)
        signals.task_prerun.connect(self._on_start, weak=False)
        signals.task_postrun.connect(self._on_end, weak=False)
        if not signals.setup_logging.receivers:
            self._format_early_warnings()

    def note(self, request: NodeRequest) -> None:
        """Know the ids of a task that has been received."""
        self._requests[request.id] = request

    def ids_of(self, task_id: str, args: Any, kwargs: Any, queue: Any) -> dict[str, str | None]:
        """Read the ids of a task from what its message holds, which may be anything."""
        given = args[0] if isinstance(args, list | tuple) and args and isinstance(args[0], dict) else {}
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        asked = kwargs.get("agent_id")
        payload = given.get("payload")
        task = payload.get("task") if isinstance(payload, dict) else given
        task = task if isinstance(task, dict) else {}
        metadata = task.get("metadata")
        workflow_id = metadata.get("workflow_id") if isinstance(metadata, dict) else None
        agent_id = asked or self._spec.agent_for(str(queue), task.get("assigned_to")).agent_id
        ids = {
            "message_id": given.get("message_id") or kwargs.get("run"),
            "task_id": task.get("task_id") or task_id,
            "agent_id": agent_id,
            "workflow_id": workflow_id,
        }
        if "message_id" in given:
            ids["correlation_id"] = task_id
        return {name: value if isinstance(value, str) else None for name, value in ids.items()}

    def banner(self, text: str, say: Callable[[], None]) -> None:
        """Have Celery's banner printed for a person; programs get a line about the start."""
        if self.style == "console":
            say()
        else:
            logging.getLogger(__name__).info(text)

    def _format_early_warnings(self) -> None:
        """Have a warning that comes before Celery sets its logging up be a line as well."""
        formatter = formatter_for(self._log_format, sys.__stderr__, self._known)
        if formatter.style == "json":
            self._early = logging.StreamHandler(sys.__stderr__)
            self._early.setFormatter(formatter)
            logging.getLogger(_WARNINGS).addHandler(self._early)
            logging.captureWarnings(capture=True)

    def _on_setup(self, logger: logging.Logger, **_: Any) -> None:
        if self._early is not None:
            logging.getLogger(_WARNINGS).removeHandler(self._early)
        for each in (logger, get_multiprocessing_logger()):
            for handler in each.handlers:
                formatter = formatter_for(self._log_format, getattr(handler, "stream", None), self._known)
                self.style = formatter.style
                handler.setFormatter(formatter)
                if self.style == "json":
                    # Celery 5.7 writes what its signal handlers say past all logging.
                    celery.apps.worker.safe_say = _Sayings(formatter)
        configure_structlog()

    def _known(self, record: logging.LogRecord) -> Mapping[str, Any]:
        data = getattr(record, "data", None)
        task_id = data.get("id") if isinstance(data, dict) else None
        request = self._requests.get(task_id) if isinstance(task_id, str) else None
        if request is not None:
            return {**self._node, **request.log_ids}
        if self._running and not (record.threadName or "").startswith(_OWN_THREADS):
            return {**self._node, **self._running}
        return self._node

    def _on_start(self, task_id: str, task: Any, args: Any, kwargs: Any, **_: Any) -> None:
        queue = (task.request.delivery_info or {}).get("routing_key")
        ids = self.ids_of(task_id, args, kwargs, queue)
        self._running = {name: value for name, value in ids.items() if value is not None}
        self._binding = bound_ids(ids)
        self._binding.__enter__()

    def _on_end(self, **_: Any) -> None:
        if self._binding is not None:
            self._binding.__exit__(None, None, None)
        self._binding, self._running = None, {}


class _Sayings:
    """Celery's `safe_say` as a line; a signal handler must not use a handler, which may be locked."""

    def __init__(self, formatter: LineFormatter) -> None:
        self._formatter = formatter

    def __call__(self, msg: str, f: Any = sys.__stderr__) -> None:
        record = logging.LogRecord("celery.worker", logging.WARNING, "", 0, str(msg), None, None)
        with_newline = self._formatter.format(record) + "\n"
        try:
            os.write(f.fileno(), with_newline.encode(errors="backslashreplace"))
        except OSError:
            return
