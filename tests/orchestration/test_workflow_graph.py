"""Dependencies and references: what runs when, with which inputs, and what is refused beforehand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conductor.core.enums import AgentType, TaskStatus
from conductor.core.exceptions import WorkflowError
from conductor.core.models import TaskDefinition, TaskResult, WorkflowDefinition
from conductor.core.state import WorkflowState
from conductor.orchestration.agent_coordinator import AgentCoordinator
from conductor.orchestration.message_bus import InMemoryMessageBus
from conductor.orchestration.state_manager import InMemoryStateManager
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.support.scripted_agent import ScriptedAgent
from tests.support.waiting import wait_until


class Floor:
    """Three coders and one agent of each other type, whose tasks end when the test lets them."""

    def __init__(self, coordinator: AgentCoordinator) -> None:
        self.coordinator = coordinator
        self.begun: list[str] = []
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, Any] = {}
        self.held: dict[str, asyncio.Event] = {}

    async def work(self, agent: ScriptedAgent, task: TaskDefinition) -> TaskResult:
        self.begun.append(task.name)
        self.inputs[task.name] = task.input_data
        if task.name in self.held:
            await self.held[task.name].wait()
        output = self.outputs.get(task.name, {})
        if isinstance(output, Exception):
            raise output
        return agent._create_result(task.task_id, TaskStatus.COMPLETED, output)

    def hold(self, *names: str) -> None:
        self.held.update({name: asyncio.Event() for name in names})

    async def run(self, definition: WorkflowDefinition, **options: Any) -> WorkflowState:
        return await WorkflowEngine(self.coordinator, self.coordinator.state_manager, **options).run_workflow(
            definition
        )


@pytest.fixture
async def floor(state: InMemoryStateManager) -> AsyncIterator[Floor]:
    coordinator = AgentCoordinator(InMemoryMessageBus(), state)
    await coordinator.start()
    made = Floor(coordinator)
    for number, agent_type in enumerate([*AgentType, AgentType.CODING, AgentType.CODING]):
        await coordinator.register_agent(ScriptedAgent(f"{agent_type}-{number}", agent_type, made.work))
    yield made
    await coordinator.stop()


def task(name: str, *depends_on: str, kind: str = "coding", **fields: Any) -> dict[str, Any]:
    return {"name": name, "assigned_to": kind, "depends_on": list(depends_on), **fields}


def workflow(*tasks: dict[str, Any], **fields: Any) -> WorkflowDefinition:
    return WorkflowDefinition.model_validate({"name": "flow", "tasks": list(tasks), **fields})


def statuses(state: WorkflowState, definition: WorkflowDefinition) -> dict[str, str]:
    return {t.name: state.task_results[t.task_id].status.value for t in definition.tasks}


async def test_all_that_is_ready_runs_at_once_and_the_rest_when_what_it_needs_is_done(floor: Floor) -> None:
    definition = workflow(task("d", "b", "c"), task("a"), task("b", "a"), task("c", "a"))
    floor.hold("a", "b", "c")
    running = asyncio.create_task(floor.run(definition))
    await wait_until(lambda: floor.begun == ["a"])
    floor.held["a"].set()
    await wait_until(lambda: sorted(floor.begun) == ["a", "b", "c"])
    floor.held["c"].set()
    floor.held["b"].set()
    final = await running
    assert final.status is TaskStatus.COMPLETED
    assert floor.begun[-1] == "d"
    assert set(statuses(final, definition).values()) == {"completed"}


async def test_a_phase_without_dependencies_runs_as_listed(floor: Floor) -> None:
    floor.hold("a")
    running = asyncio.create_task(floor.run(workflow(task("a"), task("b"))))
    await wait_until(lambda: floor.begun)
    assert floor.begun == ["a"]
    floor.held["a"].set()
    await running
    assert floor.begun == ["a", "b"]


async def test_more_ready_tasks_than_agents_wait_for_each_other(floor: Floor) -> None:
    names = [f"t{number}" for number in range(20)]
    definition = workflow(task("first"), *(task(name, "first") for name in names))
    final = await floor.run(definition)
    assert set(statuses(final, definition).values()) == {"completed"}
    assert sorted(floor.begun) == sorted(["first", *names])


async def test_without_any_agent_of_the_type_all_ready_tasks_fail_and_none_waits(floor: Floor) -> None:
    for agent in floor.coordinator.get_agents_by_type(AgentType.REVIEW):
        await floor.coordinator.unregister_agent(agent.agent_id)
    definition = workflow(task("a"), *(task(f"r{n}", "a", kind="review") for n in range(3)))
    final = await floor.run(definition)
    assert [entry["error_code"] for entry in final.error_log] == ["NO_AVAILABLE_AGENT"] * 3
    assert statuses(final, definition)["r0"] == "failed"


async def test_what_needs_a_task_that_failed_is_skipped_and_says_so(floor: Floor) -> None:
    floor.outputs["a"] = ValueError("bad")
    definition = workflow(
        task("a"),
        task("b", "a"),
        task("c", "b"),
        task("other", "free"),
        task("free"),
        task("ship", "c", kind="devops"),
    )
    final = await floor.run(definition)
    assert statuses(final, definition) == {
        "a": "failed",
        "b": "skipped",
        "c": "skipped",
        "ship": "skipped",
        "free": "completed",
        "other": "completed",
    }
    reasons = {t.name: final.task_results[t.task_id].error_message for t in definition.tasks}
    assert reasons["b"] == f"It needs task 'a' ({definition.tasks[0].task_id}), which ended as failed."
    assert "'b'" in str(reasons["c"])
    assert [entry["result"] for entry in final.phase_history] == ["failed", "skipped", "skipped"]


async def test_a_graph_that_stops_at_failures_starts_nothing_more(floor: Floor) -> None:
    floor.hold("slow")
    floor.outputs["a"] = ValueError("bad")
    definition = workflow(task("a"), task("slow"), task("b", "slow"))
    running = asyncio.create_task(floor.run(definition, stop_on_failure=True))
    await wait_until(lambda: len(floor.begun) == 2)
    floor.held["slow"].set()
    final = await running
    assert final.status is TaskStatus.FAILED
    assert statuses(final, definition) == {"a": "failed", "slow": "completed", "b": "skipped"}


async def test_inputs_come_from_outputs_and_variables_and_keep_their_type(floor: Floor) -> None:
    floor.outputs["run the tests"] = {"passed": 3, "cases": [{"id": "x"}, {"id": "y"}], "ok": True}
    inputs = {
        "passed": "${tasks.run the tests.passed}",
        "second": "${tasks.run the tests.cases.1.id}",
        "all": ["${tasks.run the tests}"],
        "text": "${vars.who} saw ${tasks.run the tests.passed} pass: ${tasks.run the tests.ok}",
        "project": "${vars.project}",
        "shell": "${HOME} $5",
    }
    definition = workflow(
        task("run the tests", kind="test"),
        task("report", input_data=inputs),
        variables={"who": "Ann", "project": {"path": "/p"}},
    )
    final = await floor.run(definition)
    assert set(statuses(final, definition).values()) == {"completed"}
    assert floor.inputs["report"] == {
        "passed": 3,
        "second": "y",
        "all": [floor.outputs["run the tests"]],
        "text": "Ann saw 3 pass: true",
        "project": {"path": "/p"},
        "shell": "${HOME} $5",
    }


async def test_what_an_output_contains_is_never_read_as_a_reference(floor: Floor) -> None:
    floor.outputs["a"] = {"text": "${vars.secret}"}
    definition = workflow(
        task("a"), task("b", input_data={"text": "${tasks.a.text}"}), variables={"secret": "s"}
    )
    await floor.run(definition)
    assert floor.inputs["b"] == {"text": "${vars.secret}"}


async def test_in_a_graph_a_reference_is_a_dependency(floor: Floor) -> None:
    floor.outputs["z"] = {"n": 1}
    definition = workflow(
        task("a", input_data={"n": "${tasks.z.n}"}), task("z", "start"), task("start"), task("other", "a")
    )
    await floor.run(definition)
    assert floor.begun == ["start", "z", "a", "other"]


async def test_an_output_that_lacks_the_field_fails_the_task_with_what_there_is(floor: Floor) -> None:
    floor.outputs["a"] = {"findings": [{"file": "x.py"}], "count": 1}
    paths = ["nothing", "findings.3", "findings.0.line", "count.x"]
    tasks = [task(f"b{n}", input_data={"n": f"${{tasks.a.{path}}}"}) for n, path in enumerate(paths)]
    definition = workflow(task("a"), *tasks)
    final = await floor.run(definition)
    said = [entry["message"] for entry in final.error_log]
    assert said[0] == (
        "input_data.n: ${tasks.a.nothing}: the output of task 'a' has no 'nothing'; "
        "it has 'findings', 'count'."
    )
    assert "has no '3' in 'findings'; it is a list of 1" in said[1]
    assert "has no 'line' in 'findings.0'; it has 'file'" in said[2]
    assert "has no 'x' in 'count'; it is 1" in said[3]
    assert {entry["error_code"] for entry in final.error_log} == {"MISSING_OUTPUT"}
    assert floor.begun == ["a"]


async def test_names_with_dots_and_ids_can_be_referred_to(floor: Floor) -> None:
    floor.outputs |= {"build 1.5": {"5": "no", "path": "p"}, "build 1": {"5": "five"}}
    definition = workflow(
        task("build 1.5", task_id="id.1"),
        task("build 1"),
        task(
            "c",
            input_data={"a": "${tasks.build 1.5.path}", "b": "${tasks.id.1.path}", "c": "${tasks.build 1.5}"},
        ),
    )
    await floor.run(definition)
    assert floor.inputs["c"] == {"a": "p", "b": "p", "c": {"5": "no", "path": "p"}}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task("a", "b"), task("b", "a")], "tasks need each other: a -> b -> a"),
        ([task("x"), task("a", "c"), task("b", "a"), task("c", "b", "x")], "a -> c -> b -> a"),
        ([task("a", "a")], "task 'a': depends_on[0]: task 'a' needs itself"),
        ([task("a", "x"), task("b")], "there is no task 'x'; there are 'a', 'b'"),
        ([task("a"), task("a"), task("b", "a")], "2 tasks have the name 'a'; use a task_id"),
        (
            [task("a", "m"), task("m", kind="monitor")],
            "task 'm' is in phase monitoring, which comes after development of task 'a'",
        ),
        (
            [task("a", input_data={"x": [{"y": "${tasks.zz.n}"}]})],
            "task 'a': input_data.x[0].y: ${tasks.zz.n} names no task",
        ),
        (
            [task("a", input_data={"x": "see ${tasks.b.n}"}), task("b")],
            "task 'b' is listed after 'a'; list it before or use depends_on",
        ),
        ([task("a", input_data={"x": "${tasks.a.n}"})], "needs itself"),
        (
            [task("b"), task("a", input_data={"x": "see ${tasks.b.n and"})],
            "task 'a': input_data.x: '${tasks.b.n and' is no reference; write ${tasks.NAME.FIELD}",
        ),
        ([task("a", input_data={"x": ["${task.b.n}"]})], "input_data.x[0]: '${task.b.n}' is no reference"),
        (
            [task("b"), task("a", input_data={"x": {"${tasks.b.n}": 1}})],
            "input_data.x: '${tasks.b.n}' is the name of a field",
        ),
        ([task("a", input_data={"x": "${vars.nope}"})], "${vars.nope} is unknown; there are: none"),
        (
            [task("a", "s"), task("s", input_data={"x": "${tasks.a.n}"})],
            "tasks need each other: a -> s -> a",
        ),
    ],
)
async def test_what_cannot_be_run_is_refused_before_anything_runs(
    floor: Floor, tasks: list[dict[str, Any]], said: str
) -> None:
    definition = workflow(*tasks)
    with pytest.raises(WorkflowError) as caught:
        await floor.run(definition)
    assert caught.value.error_code == "INVALID_WORKFLOW"
    assert said in caught.value.message
    assert floor.begun == []
    assert await floor.coordinator.state_manager.get_workflow_state(definition.workflow_id) is None


async def test_a_task_of_a_phase_that_the_workflow_has_not_cannot_be_needed(floor: Floor) -> None:
    definition = workflow(task("a"), task("m", "a", kind="monitor"), phases=["monitoring"])
    with pytest.raises(WorkflowError, match="task 'a' is in none of the workflow's phases"):
        await floor.run(definition)


async def test_a_phase_named_twice_is_refused(floor: Floor) -> None:
    with pytest.raises(WorkflowError, match="phase development is named 2 times"):
        await floor.run(workflow(task("a"), phases=["development", "development"]))


async def test_a_graph_of_thousands_of_tasks_in_a_row_is_checked(floor: Floor) -> None:
    chain = [task("t0"), *(task(f"t{n}", f"t{n - 1}") for n in range(1, 3000)), task("t0x", "t2999", "loop")]
    with pytest.raises(WorkflowError, match="there is no task 'loop'"):
        await floor.run(workflow(*chain))


async def test_agents_are_told_the_ids_of_the_workflow_and_the_definition_stays(
    floor: Floor,
) -> None:
    seen: list[TaskDefinition] = []

    async def look(agent: ScriptedAgent, given: TaskDefinition) -> TaskResult:
        seen.append(given)
        return agent.result(given)

    (agent,) = floor.coordinator.get_agents_by_type(AgentType.TEST)
    assert isinstance(agent, ScriptedAgent)
    agent.work = look
    definition = workflow(task("a", kind="test", metadata={"mine": 1}))
    await floor.run(definition)
    assert seen[0].metadata == {
        "mine": 1,
        "workflow_id": definition.workflow_id,
        "workflow_task_id": definition.tasks[0].task_id,
    }
    assert definition.tasks[0].metadata == {"mine": 1}
