"""Plain Celery applications, for `celery -A benchmarks.celery_plain:NAME worker`; they read BENCHMARK_URL."""

import os
from typing import Any

from celery import Celery

from benchmarks.load import run_task
from conductor.core.models import TaskDefinition, TaskResult

URL_VARIABLE = "BENCHMARK_URL"
# Databases of their own: another application's workers would hear each other's control messages.
_NATURAL_DATABASE, _GUARANTEED_DATABASE = 1, 2


def _make(name: str, database: int, **settings: Any) -> Celery:
    url = f"{os.environ[URL_VARIABLE].rpartition('/')[0]}/{database}"
    app = Celery(name, broker=url, backend=url, set_as_current=False)
    app.conf.update(settings, broker_connection_retry_on_startup=True)

    @app.task(name="benchmark.echo", pydantic=True, shared=False)  # type: ignore[misc,untyped-decorator]
    def echo(task: TaskDefinition) -> TaskResult:
        return run_task(task, name)

    return app


natural = _make("natural", _NATURAL_DATABASE)
"""Nothing is set but the addresses: acknowledged before it runs, lost with the process."""

guaranteed = _make(
    "guaranteed",
    _GUARANTEED_DATABASE,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_track_started=True,
    task_send_sent_event=True,
    worker_send_task_events=True,
    worker_prefetch_multiplier=1,
    result_extended=True,
)
"""What Conductor's nodes have too."""
