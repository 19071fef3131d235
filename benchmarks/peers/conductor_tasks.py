"""Ours: `Conductor.dispatch` and the handle's result."""

import asyncio
import time

from benchmarks.celery_conductor import AGENT_ID
from benchmarks.load import make_task
from benchmarks.role import Role
from conductor.client import Conductor
from conductor.core.models import TaskDefinition

TIMEOUT = 60.0


class ConductorTasks(Role):
    """To one agent, from as many coroutines as there are tasks; Conductor's environment names the server."""

    async def open(self) -> None:
        """Connect."""
        self._conductor = Conductor()
        await self._conductor.__aenter__()

    async def close(self) -> None:
        """Disconnect."""
        await self._conductor.__aexit__(None, None, None)

    async def run(self, count: int) -> float:
        """Dispatch count tasks and await their results; return the seconds."""
        tasks = [make_task(number) for number in range(count)]
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(self._one(task))
        return time.perf_counter() - began

    async def one_by_one(self, count: int) -> list[float]:
        """Wait for each result before the next task; return the seconds of each."""
        return [await self.run(1) for _ in range(count)]

    async def _one(self, task: TaskDefinition) -> None:
        handle = await self._conductor.dispatch(task, agent_id=AGENT_ID)
        result = await handle.result(TIMEOUT)
        if result.task_id != task.task_id or result.output_data != task.input_data:
            raise RuntimeError(f"the result of {task.task_id} is {result!r}")
