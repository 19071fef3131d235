"""Celery's task events, sent together."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

#: Seconds that an event waits for others.
PAUSE = 0.1


class EventPacing(bootsteps.StartStopStep):  # type: ignore[misc]
    """Flushes the buffer of task events some times a second instead of in every turn of the event loop.

    Celery 5.7 makes three messages of a task's three events; with a child that does a task in a millisecond,
    sending them took half of the parent's time.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, c: Any) -> None:
        """Take over when events are sent."""
        self._planned = False
        dispatcher = c.event_dispatcher
        if dispatcher is not None and c.hub is not None:
            dispatcher.on_send_buffered = lambda: self._plan(c)

    def stop(self, c: Any) -> None:
        """Send what waits."""
        self._flush(c)

    def _plan(self, c: Any) -> None:
        if not self._planned:
            self._planned = True
            c.timer.call_after(PAUSE, self._flush, (c,))

    def _flush(self, c: Any) -> None:
        self._planned = False
        if c.event_dispatcher is not None:
            c.event_dispatcher.flush()
