"""An engine in a process of its own, which kills itself at steps that the test names by their kind."""

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import WorkflowError
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState
from conductor.orchestration.workflow_engine import WorkflowEngine, WorkflowEvent
from conductor.store.redis_state import RedisStateManager

LEASE_SECONDS = 0.4
LEASE_LOST = 7

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["conductor.client", "conductor.orchestration.workflow_engine"])


class Fate:
    """Kills this process at the first step of a deadly kind at which no process died before."""

    def __init__(self, deaths: Path, kinds: tuple[str, ...]) -> None:
        self._deaths = deaths
        self._kinds = kinds
        self._past = set(deaths.read_text().splitlines()) if deaths.exists() else set()

    def step(self, kind: str, what: str) -> None:
        """Come to a step."""
        name = f"{kind} {what}"
        if kind in self._kinds and name not in self._past:
            with self._deaths.open("a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)


class MortalState(RedisStateManager):
    """Comes to a step before and after every save of a workflow."""

    def __init__(self, url: str, fate: Fate) -> None:
        super().__init__(url)
        self.fate = fate

    async def save_workflow_state(self, state: WorkflowState, **options: Any) -> int:
        begun = "phase_started_at" in state.metadata["progress"]
        step = f"{state.status} after {len(state.phase_history)} phases{', in the next' if begun else ''}"
        self.fate.step("before saving", step)
        version = await super().save_workflow_state(state, **options)
        self.fate.step("after saving", step)
        return version

    async def save_workflow_task_result(self, workflow_id: str, result: TaskResult) -> int:
        self.fate.step("before filing", result.task_id)
        version = await super().save_workflow_task_result(workflow_id, result)
        self.fate.step("after filing", result.task_id)
        return version


class MortalConductor(Conductor):
    """Comes to a step before and after a task is sent, and when its result is there."""

    def __init__(self, config: ConductorConfig, fate: Fate) -> None:
        super().__init__(config)
        self.fate = fate

    async def resume_task(self, task: TaskDefinition, agent_timeout: float = 30.0) -> TaskResult:
        result = await super().resume_task(task, agent_timeout)
        self.fate.step("result of", task.task_id)
        return result

    async def connect(self) -> None:
        await super().connect()
        dispatcher = self._open("send tasks").dispatcher
        dispatch, sender = dispatcher.dispatch, dispatcher._sender

        async def mortal_dispatch(task: TaskDefinition, *arguments: Any, **options: Any) -> Any:
            self.fate.step("before dispatching", task.task_id)
            return await dispatch(task, *arguments, **options)

        dispatcher.dispatch = mortal_dispatch  # type: ignore[method-assign]
        send = sender.send

        async def mortal(name: str, message: Any, queue: Any) -> None:
            self.fate.step("before sending", message.headers["id"])
            await send(name, message, queue)
            self.fate.step("after sending", message.headers["id"])

        sender.send = mortal  # type: ignore[method-assign]


ALL_KINDS = (
    *("before saving", "after saving", "before filing", "after filing"),
    *("before dispatching", "before sending", "after sending", "result of", "event"),
)


def start_engine(
    settings: dict[str, Any], definition: WorkflowDefinition, deaths: Path, kinds: tuple[str, ...] = ()
) -> BaseProcess:
    """Start a process that runs a workflow, or goes on with it; it dies at steps of these kinds."""
    arguments = (settings, definition.model_dump_json(), str(deaths), kinds)
    process = _processes.Process(target=_main, args=arguments, daemon=True)
    process.start()
    return process


def _main(settings: dict[str, Any], definition: str, deaths: str, kinds: tuple[str, ...]) -> None:
    try:
        asyncio.run(
            _run(settings, WorkflowDefinition.model_validate_json(definition), Fate(Path(deaths), kinds))
        )
    except WorkflowError as error:
        if error.error_code == "WORKFLOW_LEASE_LOST":
            os._exit(LEASE_LOST)
        raise


async def _run(settings: dict[str, Any], definition: WorkflowDefinition, fate: Fate) -> None:
    def on_event(event: WorkflowEvent) -> None:
        fate.step("event", f"{event.event} {event.task.task_id if event.task else event.phase}")

    config = ConductorConfig(**settings)
    assert config.redis.url is not None
    async with MortalConductor(config, fate) as conductor, MortalState(config.redis.url, fate) as state:
        engine = WorkflowEngine(conductor, state, on_event=on_event, lease_seconds=LEASE_SECONDS)
        if await state.get_workflow_state(definition.workflow_id) is None:
            await engine.run_workflow(definition)
        else:
            await engine.resume_workflow(definition.workflow_id)
