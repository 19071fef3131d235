"""What a node can be told from outside, beyond Celery's own commands."""

from __future__ import annotations

import time
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.worker import control
from celery.worker import state as worker_state
from celery.worker.control import Panel

from conductor.broker.node_request import NodeRequest
from conductor.core.versions import installed

if TYPE_CHECKING:
    from collections.abc import Callable

#: The name of the command that ends one run of a task.
CANCEL_TASK = "conductor_cancel_task"
#: The name of the command that asks what a node is: its versions, settings and clock.
DESCRIBE = "conductor_describe"

ONE_PROCESS = "An agent node has one process for its agents: for more or less, start or end nodes."
OWN_QUEUES = "An agent node consumes the queues of its agents and no others: start a node with another agent."
ALL_QUEUES = "An agent node consumes all queues of its agents: to have it take nothing more, end the node."
OWN_RATE = "An agent node takes tasks as fast as it does them: to limit their rate, use policies."
OWN_TIME = "An agent node goes by the timeout of each task, which its definition says."


def register() -> None:
    """Make the commands known to Celery's worker."""
    Panel.register(
        name=CANCEL_TASK, type="control", args=[("task_id", str), ("run", str)], signature="<task_id> <run>"
    )(cancel_task)
    Panel.register(name=DESCRIBE, type="inspect")(describe)
    _refuse(control.pool_grow, ONE_PROCESS)
    _refuse(control.pool_shrink, ONE_PROCESS)
    _refuse(control.add_consumer, OWN_QUEUES)
    _refuse(control.cancel_consumer, ALL_QUEUES)
    _refuse(control.rate_limit, OWN_RATE)
    _refuse(control.time_limit, OWN_TIME)


def _refuse(command: Callable[..., Any], sentence: str) -> None:
    """Have nodes refuse one of Celery's own commands; other workers of this process obey it as before."""

    @wraps(command)
    def refuse(state: Any, **arguments: Any) -> Any:
        if getattr(state.app, "node", None) is None:
            return command(state, **arguments)
        return {"error": sentence}

    about = Panel.meta[command.__name__]
    Panel.register(
        name=command.__name__, type=about.type, args=about.args, signature=about.signature, help=about.help
    )(refuse)


def cancel_task(state: Any, task_id: str, run: str = "", **_: Any) -> dict[str, Any]:
    """Cancel a run of a task on the node that has it.

    Celery's own `revoke` would make every node refuse the task's id for hours, also when it is dispatched
    again, and ends the process instead of the coroutine.
    """
    request = worker_state.requests.get(task_id)
    if not isinstance(request, NodeRequest) or (run and request.run != run):
        return {"ok": "not here"}
    grace = state.app.config.work.hard_limit_grace
    request.cancel_run(state.consumer.pool, grace, state.consumer.timer.call_after)
    return {"ok": "cancelling"}


def describe(state: Any, **_: Any) -> dict[str, Any]:
    """Tell what may differ from node to node: versions, times in seconds, and the clock since 1970."""
    work = state.app.config.work
    return {
        "versions": installed(),
        "visibility_timeout": work.visibility_timeout,
        "touch_interval": work.touch_interval,
        "clock": time.time(),
    }
