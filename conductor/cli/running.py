"""`conductor run`, `resume` and `cancel`: a workflow over agent nodes."""

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from conductor.broker.dead_letter_queue import SHORT_ID
from conductor.cli.board import Board
from conductor.cli.execution import FAILED
from conductor.cli.fleet import Fleet
from conductor.cli.node_process import NodeProcess
from conductor.cli.output import Output
from conductor.cli.progress import Listener
from conductor.cli.servers import Lookout, names, refuse_a_runs_server, servers_for_a_run, servers_of_a_run
from conductor.cli.workflow_file import Workflow
from conductor.client import Conductor
from conductor.core.channels import workflow_channel
from conductor.core.config import ConductorConfig, mask_url
from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import ConductorError, ConfigurationError, WorkflowError
from conductor.core.fields import utc_now
from conductor.core.state import AgentState, WorkflowState
from conductor.orchestration.workflow_engine import WorkflowEngine
from conductor.orchestration.workflow_progress import is_same, restore

RUN = "run"
"""In the ids of agents that live for one run."""


class WorkflowRun:
    """A run: the servers and nodes it needs and has not, the engine, and what a person sees of it."""

    def __init__(
        self,
        config: ConductorConfig,
        output: Output,
        *,
        workflow: Workflow | None = None,
        run_id: str = "",
        verbose: bool = False,
        stop_on_failure: bool = False,
        max_feedback_loops: int = 3,
    ) -> None:
        """Run a workflow, or go on with the run `run_id`, which has to exist where no workflow is given."""
        self._config = config
        self._given = workflow
        self._run_id = run_id
        self._output = output
        self._verbose = verbose
        self._stop_on_failure = stop_on_failure
        self._max_feedback_loops = max_feedback_loops
        self._board: Board

    async def run(self) -> int:
        """Run it; 0 only if every task was completed."""
        try:
            workflow, state = await self._run()
        except asyncio.CancelledError:
            self._output.note("interrupted: the run is cancelled and what it started has ended")
            raise
        rows = self._board.rows.values()
        self._board.summarize(self._output.human)
        done = sum(row.status is TaskStatus.COMPLETED for row in rows)
        succeeded = state.status is TaskStatus.COMPLETED and done == len(rows)
        duration = state.duration_seconds or 0.0
        if workflow.workspace.is_dir():
            self._output.say(f"copy of the project: {workflow.workspace}")
        if state.status is TaskStatus.FAILED and state.error_log:
            self._output.say(state.error_log[-1]["message"])
        self._output.say(f"{done} of {len(rows)} tasks completed in {duration:.1f} s")
        self._output.emit(self._document(workflow, state, succeeded=succeeded), indent=2)
        return 0 if succeeded else FAILED

    async def _run(self) -> tuple[Workflow, WorkflowState]:
        echo = self._output.note if self._verbose else None
        servers = servers_of_a_run if self._run_id else servers_for_a_run
        async with (
            servers(self._config) as config,
            Conductor(config) as conductor,
            Fleet(conductor, self._on_node, echo, temporary=True) as fleet,
        ):
            saved = await self._saved(conductor)
            workflow = _workflow_of(saved, self._config) if saved else self._given
            assert workflow is not None, "a run has a workflow, or an id to resume"
            self._output.say(f"workflow {workflow.definition.workflow_id}")
            self._board = Board(workflow, self._output)
            with self._board:
                if saved is not None:
                    self._board.restore(saved.task_results)
                if saved is None or not saved.is_complete:
                    await self._start_missing(conductor, fleet, workflow)
                else:
                    self._output.say("this run had ended before: nothing is left to do, and this is its end")
                self._board.note = ""
                state = await self._engine_run(conductor, workflow.definition.workflow_id)
                for task_id, result in state.task_results.items():
                    self._board.ended(task_id, result)
            return workflow, state

    async def _saved(self, conductor: Conductor) -> WorkflowState | None:
        """Find the run to go on with; None where a new one begins."""
        if self._given is None:
            return await find_run(conductor, self._run_id)
        if not self._run_id:
            return None
        saved = await conductor.state.get_workflow_state(self._run_id)
        if saved is None:
            refuse_a_runs_server(self._config)
        elif not is_same(restore(saved)[0], self._given.definition):
            raise WorkflowError(
                f"run {self._run_id!r} is of another workflow, or has other variables: take another --id, or "
                f"go on with it by 'conductor resume {self._run_id}'",
                self._run_id,
                "WORKFLOW_CHANGED",
            )
        return saved

    async def _engine_run(self, conductor: Conductor, workflow_id: str) -> WorkflowState:
        engine = WorkflowEngine(
            conductor,
            conductor.state,
            max_feedback_loops=self._max_feedback_loops,
            stop_on_failure=self._stop_on_failure,
            on_event=self._board.on_event,
        )
        channel = workflow_channel(workflow_id)
        async with (
            _watching(conductor, self._board),
            Listener(conductor.bus, channel, self._board.progressed),
        ):
            try:
                if self._given is None:
                    return await engine.resume_workflow(workflow_id)
                return await engine.run_workflow(self._given.definition)
            except asyncio.CancelledError:
                self._board.say("interrupted: cancelling, and stopping what was started")
                raise

    async def _start_missing(self, conductor: Conductor, fleet: Fleet, workflow: Workflow) -> None:
        """Start a node for every type of agent of which none is alive."""
        alive = await conductor.living_agents()
        there = {agent.agent_type for agent in alive if _is_to_stay(agent, self._config)}
        wanted = dict.fromkeys(task.assigned_to for task in workflow.ordered_tasks if task.assigned_to)
        missing = [agent_type for agent_type in wanted if agent_type not in there]
        _require_known(missing)
        if not missing:
            return
        self._board.say(f"starting agents: {', '.join(missing)}")

        async def taken() -> set[str]:
            return names(await conductor.state.list_agent_states())

        ids = [await fleet.reserve(f"{kind.value}-{RUN}", 1, taken) for kind in missing]
        await fleet.start((kind.value, agent_id) for kind, [agent_id] in zip(missing, ids, strict=True))

    def _on_node(self, event: str, node: NodeProcess, sentence: str) -> None:
        if event != "ready" or self._verbose:
            self._output.note(sentence)

    def _document(self, workflow: Workflow, state: WorkflowState, *, succeeded: bool) -> dict[str, Any]:
        return {
            "workflow_id": state.workflow_id,
            "name": workflow.definition.name,
            "succeeded": succeeded,
            "status": state.status.value,
            "outcome": state.metadata.get("outcome"),
            "feedback_count": state.feedback_count,
            "started_at": state.started_at.isoformat(),
            "duration_seconds": state.duration_seconds,
            "workspace": str(workflow.workspace),
            "phases": state.phase_history,
            "tasks": [
                {"name": row.task.name, "phase": row.phase, "assigned_to": row.task.assigned_to}
                | (row.result.model_dump(mode="json") if row.result else {"status": row.status.value})
                for row in self._board.rows.values()
            ],
            "error_log": state.error_log,
        }


async def cancel(config: ConductorConfig, output: Output, workflow_id: str) -> int:
    """End a run, whichever process runs it; 0 if it is cancelled then."""
    async with servers_of_a_run(config) as config, Conductor(config) as conductor:
        workflow_id = (await find_run(conductor, workflow_id)).workflow_id
        state = await WorkflowEngine(conductor, conductor.state).cancel_workflow(workflow_id)
    cancelled = state.metadata.get("outcome") == "cancelled"
    done, count = state.completed_task_count, len(state.task_results)
    how = "is cancelled" if cancelled else f"had ended before: {state.status.value}"
    output.say(f"workflow {workflow_id} {how}, {done} of {count} tasks completed")
    output.emit(
        {"workflow_id": workflow_id, "status": state.status.value, "outcome": state.metadata.get("outcome")}
    )
    return 0 if cancelled else FAILED


async def find_run(conductor: Conductor | Lookout, workflow_id: str) -> WorkflowState:
    """Find a run by its id, or by a beginning of at least SHORT_ID characters that no other has."""
    state = await conductor.state.get_workflow_state(workflow_id)
    if state is not None:
        return state
    similar = list[WorkflowState]()
    if len(workflow_id) >= SHORT_ID:
        known = await conductor.state.list_workflow_states()
        similar = [one for one in known if one.workflow_id.startswith(workflow_id)]
    if len(similar) == 1:
        return similar[0]
    if similar:
        ids = ", ".join(one.workflow_id for one in similar)
        problem = f"several workflows begin with {workflow_id!r}: {ids}"
    else:
        url = conductor.config.effective_redis_url
        place = mask_url(url) if url else f"the embedded server of {conductor.config.data_dir}"
        problem = (
            f"there is no workflow {workflow_id!r} in {place}: take the id "
            "that 'conductor run' says first, and set CONDUCTOR_REDIS__URL or CONDUCTOR_DATA_DIR as it had it"
        )
    raise WorkflowError(problem, workflow_id, "WORKFLOW_NOT_FOUND")


def _workflow_of(saved: WorkflowState, config: ConductorConfig) -> Workflow:
    return Workflow.of(restore(saved)[0], config.data_dir / "workspaces")


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
