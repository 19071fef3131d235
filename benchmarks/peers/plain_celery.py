"""Plain Celery's producer: `delay`, then `get`, in one thread, as its manual shows it."""

import asyncio
import importlib
import os
import time

from benchmarks.load import make_task
from benchmarks.role import Role
from conductor.core.models import TaskResult

TIMEOUT = 60.0


class PlainCelery(Role):
    """`app` is a name of benchmarks.celery_plain, or "package.module:name"."""

    def __init__(self, app: str, task: str, url: str) -> None:
        os.environ["BENCHMARK_URL"] = url
        module, _, name = app.partition(":")
        self.app = getattr(importlib.import_module(module), name)
        self.task = self.app.tasks[task]

    async def close(self) -> None:
        """Close the connections."""
        self.app.close()

    async def run(self, count: int) -> float:
        """Send count tasks, then collect and validate their results; return the seconds."""
        return await asyncio.to_thread(self._run, count)

    async def one_by_one(self, count: int) -> list[float]:
        """Wait for each result before the next task; return the seconds of each."""
        return await asyncio.to_thread(lambda: [self._run(1) for _ in range(count)])

    def _run(self, count: int) -> float:
        tasks = [make_task(number) for number in range(count)]
        began = time.perf_counter()
        waiting = [self.task.delay(task.model_dump(mode="json")) for task in tasks]
        for task, result in zip(tasks, waiting, strict=True):
            found = TaskResult.model_validate(result.get(timeout=TIMEOUT))
            if found.task_id != task.task_id:
                raise RuntimeError(f"the result of {task.task_id} is {found!r}")
        return time.perf_counter() - began
