"""`conductor run`: a workflow over agent nodes."""

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from conductor.cli.board import Board
from conductor.cli.execution import FAILED
from conductor.cli.fleet import Fleet
from conductor.cli.node_process import NodeProcess
from conductor.cli.output import Output
from conductor.cli.servers import free_ids, names, servers_for_a_run
from conductor.cli.workflow_file import Workflow
from conductor.client import Conductor
from conductor.core.channels import workflow_channel
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, MessageType, TaskStatus
from conductor.core.exceptions import ConductorError, ConfigurationError
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage, TaskResultPayload
from conductor.core.models import TaskDefinition, TaskResult
from conductor.core.state import AgentState, WorkflowState
from conductor.orchestration.workflow_engine import WorkflowEngine

RUN = "run"
"""In the ids of agents that live for one run."""


class WorkflowRun:
    """One run: the servers and nodes it needs and has not, the engine, and what a person sees of it."""

    def __init__(
        self,
        config: ConductorConfig,
        workflow: Workflow,
        output: Output,
        *,
        verbose: bool = False,
        stop_on_failure: bool = False,
    ) -> None:
        self._config = config
        self._workflow = workflow
        self._output = output
        self._verbose = verbose
        self._stop_on_failure = stop_on_failure
        self._board = Board(workflow, output)

    async def run(self) -> int:
        """Run it; 0 only if every task was completed."""
        try:
            with self._board:
                state = await self._run()
        except asyncio.CancelledError:
            self._output.note("interrupted: the run is cancelled and what it started has ended")
            raise
        self._board.summarize(self._output.human)
        succeeded = state.status is TaskStatus.COMPLETED and all(
            row.status is TaskStatus.COMPLETED for row in self._board.rows.values()
        )
        duration = state.duration_seconds or 0.0
        done = sum(row.status is TaskStatus.COMPLETED for row in self._board.rows.values())
        if self._workflow.workspace.is_dir():
            self._output.say(f"copy of the project: {self._workflow.workspace}")
        self._output.say(f"{done} of {len(self._board.rows)} tasks completed in {duration:.1f} s")
        self._output.emit(self._document(state, succeeded=succeeded), indent=2)
        return 0 if succeeded else FAILED

    async def _run(self) -> WorkflowState:
        echo = self._output.note if self._verbose else None
        async with (
            servers_for_a_run(self._config) as config,
            Conductor(config) as conductor,
            Fleet(conductor, self._on_node, echo, temporary=True) as fleet,
        ):
            await self._start_missing(conductor, fleet)
            self._board.note = ""
            async with _watching(conductor, self._board):
                dispatcher = _Dispatcher(conductor, self._board, self._workflow.definition.workflow_id)
                engine = WorkflowEngine(dispatcher, conductor.state, stop_on_failure=self._stop_on_failure)
                try:
                    state = await engine.run_workflow(self._workflow.definition)
                except asyncio.CancelledError:
                    self._board.say("interrupted: cancelling, and stopping what was started")
                    raise
            for task_id, result in state.task_results.items():
                self._board.ended(task_id, result)
            return state

    async def _start_missing(self, conductor: Conductor, fleet: Fleet) -> None:
        """Start a node for every type of agent of which none is alive."""
        alive = await conductor.living_agents()
        there = {agent.agent_type for agent in alive if _is_to_stay(agent, self._config)}
        wanted = dict.fromkeys(task.assigned_to for task in self._workflow.ordered_tasks if task.assigned_to)
        missing = [agent_type for agent_type in wanted if agent_type not in there]
        _require_known(missing)
        if not missing:
            return
        self._board.say(f"starting agents: {', '.join(missing)}")
        taken = names(await conductor.state.list_agent_states())
        await fleet.start((kind.value, free_ids(f"{kind.value}-{RUN}", 1, taken)[0]) for kind in missing)

    def _on_node(self, event: str, node: NodeProcess, sentence: str) -> None:
        if event != "ready" or self._verbose:
            self._output.note(sentence)

    def _document(self, state: WorkflowState, *, succeeded: bool) -> dict[str, Any]:
        return {
            "workflow_id": state.workflow_id,
            "name": self._workflow.definition.name,
            "succeeded": succeeded,
            "status": state.status.value,
            "started_at": state.started_at.isoformat(),
            "duration_seconds": state.duration_seconds,
            "workspace": str(self._workflow.workspace),
            "phases": state.phase_history,
            "tasks": [
                {"name": row.task.name, "phase": row.phase, "assigned_to": row.task.assigned_to}
                | (row.result.model_dump(mode="json") if row.result else {"status": row.status.value})
                for row in self._board.rows.values()
            ],
            "error_log": state.error_log,
        }


class _Dispatcher:
    """Tells the board and the workflow's channel of every task that goes through to the nodes."""

    def __init__(self, conductor: Conductor, board: Board, workflow_id: str) -> None:
        self._conductor = conductor
        self._board = board
        self._workflow_id = workflow_id

    async def dispatch_task(self, task: TaskDefinition) -> TaskResult:
        self._board.started(task.task_id)
        task = task.model_copy(update={"metadata": {**task.metadata, "workflow_id": self._workflow_id}})
        result = await self._conductor.dispatch_task(task)
        self._board.ended(task.task_id, result)
        message = AgentMessage(
            message_type=MessageType.TASK_RESULT,
            sender_id=f"workflow-{self._workflow_id}",
            payload=TaskResultPayload(result=result).model_dump(mode="json"),
        )
        with contextlib.suppress(ConductorError):
            await self._conductor.bus.publish(workflow_channel(self._workflow_id), message)
        return result


@contextlib.asynccontextmanager
async def _watching(conductor: Conductor, board: Board) -> AsyncIterator[None]:
    """Show which agent works on which task, as far as that is to be known."""

    async def watch() -> None:
        with contextlib.suppress(ConductorError):
            async with conductor.state.watch_agent_states() as changes:
                async for change in changes:
                    if change.state is not None:
                        board.taken(change.state.current_task_id, change.agent_id)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


def _is_to_stay(agent: AgentState, config: ConductorConfig) -> bool:
    """Whether an agent will be there: not another run's, nor a killed node's, whose heartbeat is late."""
    if agent.last_heartbeat is None or f"-{RUN}-" in agent.agent_id:
        return False
    age = (utc_now() - agent.last_heartbeat).total_seconds()
    return age < 2 * config.node.heartbeat_interval + 0.5


def _require_known(missing: Iterable[AgentType]) -> None:
    # By name: `workers` stands above this package, and a deployment may bring its own.
    known = importlib.import_module("workers.agents").AGENTS
    for agent_type in missing:
        if agent_type.value not in known:
            raise ConfigurationError(
                f"the workflow has a task for a {agent_type.value} agent: none is running, and there is "
                f"none to start (there are {', '.join(known)}). Start one of yours first: "
                "conductor up --agents package.module:Class"
            )
