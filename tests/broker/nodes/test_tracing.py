"""One trace from a dispatch through broker and node to the result, on real nodes of both brokers."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry import trace

from conductor.client import Conductor
from conductor.core.enums import MessageType, TaskStatus, WorkflowPhase
from conductor.core.messages import AgentMessage, TaskAssignmentPayload
from conductor.core.models import WorkflowDefinition
from conductor.orchestration.workflow_engine import WorkflowEngine
from tests.broker.nodes.conftest import letters_of, task
from tests.support.nodes import AgentNode, Farm
from tests.support.spans import EXPORTER, FILE, FoundSpan, Spans, recorded, tree
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans") / "spans.jsonl"


@pytest.fixture(scope="module")
def node(farm: Farm, file: Path) -> AgentNode:
    node = farm.start(
        "ObedientAgent",
        CONDUCTOR_TRACING__EXPORTER=EXPORTER,
        CONDUCTOR_TRACING__SERVICE_NAME="nodes",
        CONDUCTOR_ERRORS__RETRY__INITIAL_DELAY="0.1",
        **{FILE: str(file)},
    )
    farm.setup(node)
    return node


@pytest.fixture
def spans(file: Path) -> Iterator[Spans]:
    with recorded(file) as spans:
        yield spans


@pytest.fixture
async def conductor(farm: Farm, spans: Spans) -> AsyncIterator[Conductor]:
    async with Conductor(farm.config) as conductor:
        yield conductor


async def spans_of(spans: Spans, task_id: str, expected: list[str]) -> dict[str, FoundSpan]:
    await wait_until(lambda: tree(spans.of_task(task_id)) == expected, timeout=20)
    return {span.name: span for span in spans.of_task(task_id)}


async def test_a_dispatched_task_is_one_trace_of_two_processes(
    conductor: Conductor, node: AgentNode, spans: Spans
) -> None:
    order = task(say="a secret payload")
    order = order.model_copy(update={"metadata": {"workflow_id": "w-1"}})
    await (await conductor.dispatch(order, node.agent_id)).result(30)
    found = await spans_of(
        spans,
        order.task_id,
        ["dispatch to echo", "  process to echo", "    execute to echo", "  result to echo"],
    )
    dispatch, process = found["dispatch to echo"], found["process to echo"]
    execute, result = found["execute to echo"], found["result to echo"]
    assert [span.kind for span in (dispatch, process, execute, result)] == [
        *["producer", "consumer", "internal", "consumer"]
    ]
    assert dispatch.pid == result.pid != process.pid == execute.pid
    assert process.service == "nodes"
    assert {span.status for span in found.values()} == {"UNSET"}
    for span in (dispatch, process, execute):
        assert span.attributes["conductor.task.id"] == order.task_id
        assert span.attributes["conductor.workflow.id"] == "w-1"
        assert span.attributes["conductor.agent.type"] == "coding"
    assert {span.attributes["conductor.agent.id"] for span in (execute, result)} == {node.agent_id}
    assert process.attributes["messaging.destination.name"] == f"conductor.agent.{node.agent_id}"
    assert process.attributes["messaging.message.id"] == dispatch.attributes["messaging.message.id"]
    assert process.attributes["conductor.attempt"] == 1
    assert "a secret payload" not in repr(found)


async def test_each_try_is_a_span_of_the_same_trace(
    conductor: Conductor, node: AgentNode, spans: Spans, tmp_path: Path
) -> None:
    order = task("fail_with", log=tmp_path / "log", code="TRANSIENT_ERROR", times=2)
    result = await (await conductor.dispatch(order, node.agent_id)).result(30)
    assert result.status is TaskStatus.COMPLETED
    tried = ["  process to fail_with", "    execute to fail_with"]
    await spans_of(
        spans, order.task_id, ["dispatch to fail_with", *tried, *tried, *tried, "  result to fail_with"]
    )
    tries = [span for span in spans.of_task(order.task_id) if span.name.startswith("process")]
    tries.sort(key=lambda span: span.attributes["conductor.attempt"])
    assert [span.attributes["conductor.attempt"] for span in tries] == [1, 2, 3]
    assert [span.status for span in tries] == ["ERROR", "ERROR", "UNSET"]
    assert [span.attributes.get("error.type") for span in tries] == ["TRANSIENT_ERROR"] * 2 + [None]
    assert [span.events for span in tries] == [["conductor.retry"], ["conductor.retry"], []]


async def test_a_failure_is_an_error_everywhere_and_its_replay_is_in_the_trace(
    conductor: Conductor, node: AgentNode, spans: Spans, tmp_path: Path
) -> None:
    order = task("fail_with", log=tmp_path / "log", code="HOPELESS", times=1)
    await (await conductor.dispatch(order, node.agent_id)).result(30)
    one = ["  process to fail_with", "    execute to fail_with"]
    first = [*one, "    publish errors"]
    found = await spans_of(spans, order.task_id, ["dispatch to fail_with", *first, "  result to fail_with"])
    for name in ("process", "execute", "result"):
        span = found[f"{name} to fail_with"]
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "HOPELESS")
    assert found["dispatch to fail_with"].status == "UNSET"
    assert found["process to fail_with"].events == ["conductor.dead_letter"]
    [letter] = await letters_of(conductor, order.task_id)
    report = await conductor.dead_letters.replay(letter.letter_id)
    assert report.replayed
    await spans_of(spans, order.task_id, ["dispatch to fail_with", *first, *one, "  result to fail_with"])


async def test_a_question_is_one_trace_until_its_answer(
    conductor: Conductor, node: AgentNode, spans: Spans
) -> None:
    question = AgentMessage(
        message_type=MessageType.FEEDBACK, sender_id="tester", payload={"do": "echo", "say": "hidden"}
    )
    await conductor.bus.request(f"conductor:agent:{node.agent_id}", question, timeout=30)
    expected = ["request agent", "  process feedback", "    publish response"]
    await wait_until(lambda: tree(spans.of_message(question.message_id)) == expected, timeout=20)
    kinds = {span.name: span.kind for span in spans.of_message(question.message_id)}
    assert kinds == {
        "request agent": "client",
        "process feedback": "consumer",
        "publish response": "producer",
    }


async def test_a_task_in_a_request_is_executed_in_its_trace(
    conductor: Conductor, node: AgentNode, spans: Spans
) -> None:
    order = task(say="hello")
    message = AgentMessage(
        message_type=MessageType.TASK_ASSIGNMENT,
        sender_id="tester",
        payload=TaskAssignmentPayload(task=order).model_dump(mode="json"),
    )
    await conductor.bus.request(f"conductor:agent:{node.agent_id}", message, timeout=30)
    expected = ["request agent", "  process to echo", "    execute to echo", "    publish response"]
    await wait_until(lambda: tree(spans.of_message(message.message_id)) == expected, timeout=20)


async def test_an_event_is_processed_in_the_trace_of_who_published_it(
    conductor: Conductor, node: AgentNode, spans: Spans
) -> None:
    event = AgentMessage(message_type=MessageType.FEEDBACK, sender_id="tester", payload={})
    await conductor.bus.publish("conductor:broadcast", event)
    await conductor.bus.publish(f"conductor:agent:{node.agent_id}", event)
    for kind in ("broadcast", "agent"):
        expected = [f"publish {kind}", f"  process {kind}"]
        await wait_until(
            lambda wanted=expected: wanted in [tree(one) for one in spans.traces_of(event.message_id)],
            timeout=20,
        )


async def test_a_workflow_is_the_parent_of_its_phases_and_tasks(
    conductor: Conductor, node: AgentNode, spans: Spans
) -> None:
    order = task("judge")
    definition = WorkflowDefinition(name="one step", phases=[WorkflowPhase.DEVELOPMENT], tasks=[order])
    with trace.get_tracer("test").start_as_current_span("program"):
        await WorkflowEngine(conductor, conductor.state).run_workflow(definition)

    def steps() -> list[str]:
        found = tree(spans.of_task(order.task_id))
        return [line for line in found if not line.strip().endswith(" workflow")]

    expected = [
        "program",
        "  workflow one step",
        "    phase development",
        "      dispatch to judge",
        "        process to judge",
        "          execute to judge",
        "        result to judge",
    ]
    await wait_until(lambda: steps() == expected, timeout=30)


async def test_a_run_that_is_stopped_is_an_error(conductor: Conductor, node: AgentNode, spans: Spans) -> None:
    order = task("judge")
    definition = WorkflowDefinition(name="stopped", phases=[WorkflowPhase.DEVELOPMENT], tasks=[order])
    engine = WorkflowEngine(conductor, conductor.state, stop_on_failure=True)
    await engine.run_workflow(definition)
    [run] = [span for span in spans.all() if span.name == "workflow stopped"]
    assert (run.status, run.attributes["error.type"]) == ("ERROR", "WORKFLOW_FAILED")


async def test_without_tracing_nothing_is_imported_and_no_header_sent(farm: Farm, agent: AgentNode) -> None:
    async with Conductor(farm.config) as conductor:
        # redis-py imports some other parts of the SDK where it is installed.
        order = task("modules", beginning="opentelemetry.sdk.trace")
        result = await (await conductor.dispatch(order, agent.agent_id)).result(30)
        assert result.output_data == {"modules": []}
        order = task("fail")
        await (await conductor.dispatch(order, agent.agent_id)).result(30)
        [letter] = await letters_of(conductor, order.task_id)
        assert "traceparent" not in letter.headers


@pytest.mark.parametrize("header", ["00-zz", "x" * 9000, 5, {"a": 1}, None], ids=type)
async def test_a_header_that_is_no_trace_is_passed_over(
    farm: Farm, node: AgentNode, spans: Spans, header: object
) -> None:
    order = task(say="hello")
    farm.app.send_task(
        "conductor.execute_task",
        (order.model_dump(mode="json"),),
        task_id=order.task_id,
        queue=f"conductor.agent.{node.agent_id}",
        headers={"traceparent": header},
    )
    found = await spans_of(spans, order.task_id, ["process to echo", "  execute to echo"])
    assert found["process to echo"].parent_id is None


async def test_log_lines_have_the_ids_of_their_span(
    conductor: Conductor, node: AgentNode, spans: Spans
) -> None:
    order = task("fail", say="to be logged")
    await (await conductor.dispatch(order, node.agent_id)).result(30)
    one = ["  process to fail", "    execute to fail", "    publish errors"]
    found = await spans_of(spans, order.task_id, ["dispatch to fail", *one, "  result to fail"])
    execute = found["execute to fail"]
    ids = f'"trace_id": "{execute.trace_id:032x}", "span_id": "{execute.span_id:016x}"'
    assert [line for line in node.logs().splitlines() if "failed in task" in line and ids in line]
