"""A process that dispatches tasks to an agent which does not exist, told what to do over a pipe.

Its first line is its configuration as JSON; each further one is the arguments of `_dispatch`, and answered by
what came of the tasks: a policy's name for every denial.
"""

import asyncio
import json
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from conductor.broker.records import KEY_PREFIX
from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import PolicyViolationError
from conductor.core.models import TaskDefinition
from conductor.store.redis_quotas import RedisQuotaStore
from conductor.store.redis_state import RedisStateManager


class DispatchingProcess:
    """A process with a connected Conductor; belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, config: ConductorConfig, lease_seconds: float | None = None) -> Self:
        """Start one and wait until it is connected; its reservations have leases of this length."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self = cls(process)
        await self._tell({"config": config.model_dump(mode="json"), "lease_seconds": lease_seconds})
        assert await self._answer() == "ready"
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            await self.kill()

    async def dispatch(self, tasks: list[TaskDefinition], wait: float | None = None) -> list[str]:
        """Have all tasks dispatched at once; give what came of each."""
        await self.begin(tasks, wait)
        answer: list[str] = await self._answer()
        return answer

    async def begin(self, tasks: list[TaskDefinition], wait: float | None = None) -> None:
        """The same, without waiting for what comes of it."""
        await self._tell({"tasks": [task.model_dump(mode="json") for task in tasks], "wait": wait})

    async def kill(self) -> None:
        """End the process with SIGKILL, as a crash would."""
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def _tell(self, words: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        await self._process.stdin.drain()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout=90)
        assert line, "the process ended"
        return json.loads(line)


async def _dispatch(conductor: Conductor, tasks: list[dict[str, Any]], wait: float | None) -> list[str]:
    async def one(task: TaskDefinition) -> str:
        try:
            await conductor.dispatch(task, "nobody-at-all", wait=wait)
        except PolicyViolationError as error:
            return error.policy_name
        return "sent"

    return await asyncio.gather(*(one(TaskDefinition.model_validate(task)) for task in tasks))


def _shorten_leases(conductor: Conductor, seconds: float) -> None:
    state, engine = conductor.state, conductor.policy_engine
    assert isinstance(state, RedisStateManager)
    assert engine is not None
    prefix = conductor.config.redis.key_prefix
    engine.attach(RedisQuotaStore(state.link, prefix, KEY_PREFIX, lease_seconds=seconds))


async def _serve() -> None:
    loop = asyncio.get_running_loop()

    async def heard() -> dict[str, Any] | None:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        return json.loads(line) if line else None

    begin = await heard()
    assert begin is not None
    async with Conductor(ConductorConfig.model_validate(begin["config"])) as conductor:
        if begin["lease_seconds"] is not None:
            _shorten_leases(conductor, begin["lease_seconds"])
        _say("ready")
        while (order := await heard()) is not None:
            _say(await _dispatch(conductor, **order))


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve())
