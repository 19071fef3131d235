"""The heartbeats of a node's agents, from its parent process."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps

logger = logging.getLogger(__name__)

#: Seconds between two looks whether the node is ready, and whether its child lives.
READY_LOOK_INTERVAL = 0.05
CHILD_LOOK_INTERVAL = 0.25
#: Seconds between two looks for tasks that wait for agents nobody has ever seen, at least.
SWEEP_INTERVAL = 2.0


class AgentHeartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
    """Stamps the states of the node's agents while it lives, whatever their code does to the child.

    The first stamp says that the node is ready: it hears requests, and its agents are started. It is a step
    of the worker, not of its consumer: it survives a lost broker connection and goes on while the last task
    of a stopping node ends.
    """

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def start(self, w: Any) -> None:
        """Start stamping."""
        self._trouble = False
        self._early = w.timer.call_repeatedly(READY_LOOK_INTERVAL, self._look, (w,))
        # Celery 5.7 notices the end of the first child only in a check every 5 s, of later ones at once.
        w.timer.call_repeatedly(CHILD_LOOK_INTERVAL, w.pool.maintain_pool)

    def _look(self, w: Any) -> None:
        """Wait for the node to be ready."""
        if w.listening and self._beat(w):
            self._early.cancel()
            logger.warning("Node %s is ready: %s", w.hostname, ", ".join(a.agent_id for a in w.spec.agents))
            interval = w.app.config.node.heartbeat_interval
            w.timer.call_repeatedly(interval, self._beat, (w,))
            w.timer.call_repeatedly(max(interval, SWEEP_INTERVAL), self._sweep, (w,))

    def _beat(self, w: Any) -> bool:
        try:
            found = [w.desk.touch(agent.agent_id) for agent in w.spec.agents]
        except Exception as error:  # noqa: BLE001 - the next beat tries again
            if not self._trouble:
                logger.warning("Heartbeats of node %s cannot be filed: %s", w.hostname, error)
            self._trouble = True
            return False
        self._trouble = False
        return all(found)

    def _sweep(self, w: Any) -> None:
        try:
            w.desk.sweep()
        except Exception as error:  # noqa: BLE001 - the next sweep tries again
            logger.warning("Tasks for unknown agents cannot be put aside: %s", error)
