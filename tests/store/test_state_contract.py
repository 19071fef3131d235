"""What every state manager promises."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from conductor.core.enums import AgentStatus, AgentType, TaskStatus, WorkflowPhase
from conductor.core.exceptions import StateError
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState
from conductor.orchestration.state_manager import InMemoryStateManager, StateManager
from conductor.store.redis_state import RedisStateManager
from tests.store.conftest import Pair
from tests.store.makers import START, agent, result, workflow

NASTY = [
    'a:b"c\\d',
    "ümläut-漢字-🎉",
    "with space\nand line",
    "*?[x]",
    "status:idle",
    "_version",
    "{tag}",
    "%b",
]


@dataclass
class Entity:
    """The four methods of one kind of entity, and how to make one."""

    make: Callable[..., Any]
    id_field: str
    save: str
    get: str
    delete: str
    list: str

    def on(self, manager: StateManager, method: str) -> Callable[..., Awaitable[Any]]:
        return getattr(manager, getattr(self, method))  # type: ignore[no-any-return]


MAKERS: list[tuple[str, Callable[..., Any], str]] = [
    ("agent_state", agent, "agent_id"),
    ("workflow_state", workflow, "workflow_id"),
    ("task_result", result, "task_id"),
]
ENTITIES = {
    name: Entity(make, id_field, f"save_{name}", f"get_{name}", f"delete_{name}", f"list_{name}s")
    for name, make, id_field in MAKERS
}


@pytest.fixture(params=ENTITIES)
def entity(request: pytest.FixtureRequest) -> Entity:
    return ENTITIES[request.param]


def code(caught: pytest.ExceptionInfo[StateError]) -> str:
    return caught.value.error_code


@pytest.mark.parametrize("implementation", [InMemoryStateManager, RedisStateManager])
def test_conforms_to_the_abc(implementation: type[StateManager]) -> None:
    assert issubclass(implementation, StateManager)
    assert not inspect.isabstract(implementation)
    for name, method in vars(StateManager).items():
        if name.startswith(("save_", "get_", "delete_", "list_", "update_")):
            assert inspect.iscoroutinefunction(method), name
            assert inspect.signature(getattr(implementation, name)) == inspect.signature(method)
    with pytest.raises(TypeError):
        StateManager()  # type: ignore[abstract]


async def test_what_was_saved_is_got(manager: StateManager, entity: Entity) -> None:
    state = entity.make("x", metadata={"deep": {"list": [1, 2.5, None, True, "ü"], "empty": {}}})
    assert await entity.on(manager, "save")(state) > 0
    assert await entity.on(manager, "get")("x") == state


async def test_every_field_survives(manager: StateManager) -> None:
    full = agent(
        "a",
        agent_type=AgentType.TEST_DATA,
        status=AgentStatus.WAITING,
        current_task_id="t",
        completed_tasks=["1", "2"],
        failed_tasks=["3"],
        error_count=7,
        last_heartbeat=START + timedelta(microseconds=1),
        metadata={"host": "h"},
        updated_at=START,
    )
    outcome = result(
        "t",
        status=TaskStatus.FAILED,
        output_data={"n": [{}]},
        error_message='bad "thing"\n',
        completed_at=START,
        duration_seconds=0.1,
        metadata={"m": 1},
    )
    run = workflow(
        "w",
        current_phase=WorkflowPhase.DEVOPS,
        phase_history=[{"phase": "development", "result": "completed"}],
        agent_states={"a": full, 'od"d': agent('od"d')},
        task_results={"t": outcome},
        completed_at=START,
        status=TaskStatus.COMPLETED,
        error_log=[{"error": "e"}],
        feedback_count=2,
        metadata={"k": "v"},
    )
    await manager.save_agent_state(full)
    await manager.save_task_result(outcome)
    await manager.save_workflow_state(run)
    assert await manager.get_agent_state("a") == full
    assert await manager.get_task_result("t") == outcome
    assert await manager.get_workflow_state("w") == run


@pytest.mark.parametrize("entity_id", NASTY)
async def test_any_id_will_do(manager: StateManager, entity: Entity, entity_id: str) -> None:
    await entity.on(manager, "save")(entity.make(entity_id))
    assert [getattr(state, entity.id_field) for state in await entity.on(manager, "list")()] == [entity_id]
    assert await entity.on(manager, "delete")(entity_id) is True
    assert await entity.on(manager, "list")() == []


async def test_a_missing_one_is_none_and_deleting_it_false(manager: StateManager, entity: Entity) -> None:
    assert await entity.on(manager, "get")("nobody") is None
    assert await entity.on(manager, "get")("") is None
    assert await entity.on(manager, "get")("\ud800") is None
    assert await entity.on(manager, "delete")("nobody") is False
    assert await entity.on(manager, "list")() == []


async def test_a_deleted_one_is_gone(manager: StateManager, entity: Entity) -> None:
    await entity.on(manager, "save")(entity.make("x"))
    await entity.on(manager, "save")(entity.make("y"))
    assert await entity.on(manager, "delete")("x") is True
    assert await entity.on(manager, "delete")("x") is False
    assert await entity.on(manager, "get")("x") is None
    assert [getattr(state, entity.id_field) for state in await entity.on(manager, "list")()] == ["y"]


async def test_the_last_write_wins(pair: Pair, entity: Entity) -> None:
    await entity.on(pair.one, "save")(entity.make("x", metadata={"n": 1, "old": True}))
    await entity.on(pair.two, "save")(entity.make("x", metadata={"n": 2}))
    assert (await entity.on(pair.one, "get")("x")).metadata == {"n": 2}
    assert len(await entity.on(pair.one, "list")()) == 1


async def test_kinds_never_collide(manager: StateManager) -> None:
    await manager.save_agent_state(agent("same"))
    await manager.save_workflow_state(workflow("same"))
    await manager.save_task_result(result("same"))
    assert await manager.delete_workflow_state("same")
    assert await manager.get_agent_state("same") == agent(
        "same", updated_at=(await _agent(manager)).updated_at
    )
    assert await manager.get_task_result("same") == result("same")


async def _agent(manager: StateManager, agent_id: str = "same") -> AgentState:
    found = await manager.get_agent_state(agent_id)
    assert found is not None
    return found


async def test_what_is_stored_is_a_copy(manager: StateManager, entity: Entity) -> None:
    state = entity.make("x", metadata={"list": [1]})
    await entity.on(manager, "save")(state)
    state.metadata["list"].append(2)
    got = await entity.on(manager, "get")("x")
    assert got.metadata == {"list": [1]}
    got.metadata["list"].append(3)
    (await entity.on(manager, "list")())[0].metadata["list"].append(4)
    assert (await entity.on(manager, "get")("x")).metadata == {"list": [1]}


@pytest.mark.parametrize("value", [object(), {1, object()}, b"\xff"])
async def test_what_json_cannot_hold_is_refused_by_field(
    manager: StateManager, entity: Entity, value: object
) -> None:
    await entity.on(manager, "save")(entity.make("x"))
    with pytest.raises(StateError, match="metadata") as caught:
        await entity.on(manager, "save")(entity.make("x", metadata={"bad": value}))
    assert code(caught) == "STATE_NOT_SERIALIZABLE"
    assert (await entity.on(manager, "get")("x")).metadata == {}


async def test_the_wrong_class_is_refused(manager: StateManager) -> None:
    with pytest.raises(StateError, match="AgentState") as caught:
        await manager.save_agent_state(result("t"))  # type: ignore[arg-type]
    assert code(caught) == "STATE_INVALID"


async def test_lists_are_newest_first_and_in_pages(manager: StateManager, entity: Entity) -> None:
    for age in (3, 1, 0, 2, 4):
        await entity.on(manager, "save")(entity.make(f"age-{age}", age))
    list_ = entity.on(manager, "list")

    async def ids(**page: Any) -> list[str]:
        return [getattr(state, entity.id_field) for state in await list_(**page)]

    assert await ids() == ["age-0", "age-1", "age-2", "age-3", "age-4"]
    assert await ids(limit=2) == ["age-0", "age-1"]
    assert await ids(limit=2, offset=3) == ["age-3", "age-4"]
    assert await ids(offset=4) == ["age-4"]
    assert await ids(limit=0) == []
    assert await ids(offset=5) == []


async def test_those_of_one_moment_have_an_order_too(manager: StateManager, entity: Entity) -> None:
    for name in ("b", "a", "c"):
        await entity.on(manager, "save")(entity.make(name))
    assert [getattr(state, entity.id_field) for state in await entity.on(manager, "list")()] == [
        "c",
        "b",
        "a",
    ]


@pytest.mark.parametrize("page", [{"limit": -1}, {"offset": -1}, {"limit": "5"}, {"offset": 1.5}])
async def test_an_impossible_page_is_refused(
    manager: StateManager, entity: Entity, page: dict[str, Any]
) -> None:
    with pytest.raises(StateError, match=next(iter(page))) as caught:
        await entity.on(manager, "list")(**page)
    assert code(caught) == "STATE_INVALID"


async def test_lists_are_filtered_and_follow_changes(pair: Pair) -> None:
    one, two = pair.one, pair.two
    await one.save_agent_state(agent("a", 0, status=AgentStatus.RUNNING))
    await one.save_agent_state(agent("b", 1))
    await one.save_agent_state(agent("c", 2, agent_type=AgentType.REVIEW))
    await one.save_agent_state(agent("d", 3))

    async def ids(**filters: Any) -> list[str]:
        return [state.agent_id for state in await two.list_agent_states(**filters)]

    assert await ids(status=AgentStatus.IDLE) == ["b", "c", "d"]
    assert await ids(status="running") == ["a"]
    assert await ids(agent_type="review") == ["c"]
    assert await ids(status="idle", agent_type="coding") == ["b", "d"]
    assert await ids(status="idle", agent_type="coding", limit=1, offset=1) == ["d"]
    assert await ids(status="idle", limit=1, offset=1) == ["c"]
    assert await ids(status="failed") == []
    await one.save_agent_state(agent("b", 1, status=AgentStatus.RUNNING))
    await two.update_agent_state("c", status=AgentStatus.RUNNING)
    await one.delete_agent_state("d")
    assert await ids(status="idle") == []
    assert await ids(status="running") == ["a", "b", "c"]
    assert await ids(status="running", agent_type="coding") == ["a", "b"]


async def test_workflows_and_results_are_filtered(manager: StateManager) -> None:
    await manager.save_workflow_state(workflow("dev", 0, status=TaskStatus.IN_PROGRESS))
    ops = workflow("ops", 1, status=TaskStatus.IN_PROGRESS, current_phase=WorkflowPhase.DEVOPS)
    await manager.save_workflow_state(ops)
    await manager.save_task_results([result("ok", 0), result("bad", 1, TaskStatus.FAILED)])
    assert [run.workflow_id for run in await manager.list_workflow_states(current_phase="devops")] == ["ops"]
    assert [run.workflow_id for run in await manager.list_workflow_states(status="in_progress")] == [
        "dev",
        "ops",
    ]
    assert [item.task_id for item in await manager.list_task_results(status=TaskStatus.FAILED)] == ["bad"]


async def test_an_unknown_filter_value_is_refused_with_the_known_ones(manager: StateManager) -> None:
    with pytest.raises(StateError, match="running") as caught:
        await manager.list_agent_states(status="asleep")
    assert code(caught) == "STATE_INVALID"


async def test_long_lists_are_complete(manager: StateManager) -> None:
    await manager.save_task_results([result(str(number), number) for number in range(1500)])
    listed = await manager.list_task_results()
    assert [item.task_id for item in listed] == [str(number) for number in range(1500)]


async def test_a_batch_names_what_failed_and_saves_the_rest(manager: StateManager) -> None:
    with pytest.raises(StateError, match="bad"):
        await manager.save_task_results(
            [result("1"), result("bad", output_data={"x": object()}), result("2")]
        )
    assert {item.task_id for item in await manager.list_task_results()} == {"1", "2"}


async def test_compare_and_set(pair: Pair, entity: Entity) -> None:
    save, get = entity.on(pair.one, "save"), getattr(pair.one, f"{entity.get}_versioned")
    first = await save(entity.make("x"), expected_version=0)
    assert (await get("x")).version == first
    second = await entity.on(pair.two, "save")(entity.make("x", metadata={"n": 2}), expected_version=first)
    assert second > first
    with pytest.raises(StateError, match="x") as caught:
        await save(entity.make("x", metadata={"n": 3}), expected_version=first)
    assert code(caught) == "STATE_CONFLICT"
    assert caught.value.details["actual_version"] == second
    assert (
        await get("x") == (entity.make("x", metadata={"n": 2}).model_copy(), second) or entity.make is agent
    )
    with pytest.raises(StateError, match="x"):
        await save(entity.make("x"), expected_version=0)
    await entity.on(pair.two, "delete")("x")
    with pytest.raises(StateError, match="does not exist"):
        await save(entity.make("x"), expected_version=second)
    assert await save(entity.make("x"), expected_version=0) > second
    assert await get("nobody") is None


async def test_of_many_that_compare_and_set_at_once_one_wins(pair: Pair) -> None:
    version = await pair.one.save_agent_state(agent("a"))
    managers = [pair.one, pair.two] * 10
    saves = (manager.save_agent_state(agent("a"), expected_version=version) for manager in managers)
    outcomes = await asyncio.gather(*saves, return_exceptions=True)
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, StateError) for outcome in outcomes) == 19


async def test_every_change_of_an_agent_is_a_new_version(manager: StateManager) -> None:
    versions = [
        await manager.save_agent_state(agent("a")),
        await manager.update_agent_state("a", status="running"),
        await manager.save_agent_state(agent("a")),
    ]
    assert versions == sorted(set(versions))
    found = await manager.get_agent_state_versioned("a")
    assert found is not None
    assert found.version == versions[-1]


OPERATIONS: dict[str, Callable[[StateManager], Awaitable[object]]] = {
    "save_agent_state": lambda m: m.save_agent_state(agent("a")),
    "get_agent_state": lambda m: m.get_agent_state("a"),
    "get_agent_state_versioned": lambda m: m.get_agent_state_versioned("a"),
    "delete_agent_state": lambda m: m.delete_agent_state("a"),
    "list_agent_states": lambda m: m.list_agent_states(),
    "update_agent_state": lambda m: m.update_agent_state("a", status="idle"),
    "save_workflow_state": lambda m: m.save_workflow_state(workflow("w")),
    "save_workflow_task_result": lambda m: m.save_workflow_task_result("w", result("t")),
    "get_workflow_state": lambda m: m.get_workflow_state("w"),
    "delete_workflow_state": lambda m: m.delete_workflow_state("w"),
    "list_workflow_states": lambda m: m.list_workflow_states(),
    "save_task_result": lambda m: m.save_task_result(result("t")),
    "save_task_results": lambda m: m.save_task_results([result("t")]),
    "get_task_result": lambda m: m.get_task_result("t"),
    "delete_task_result": lambda m: m.delete_task_result("t"),
    "list_task_results": lambda m: m.list_task_results(),
    "watch_agent_states": lambda m: anext(m.watch_agent_states()),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nothing_works_unless_connected(pair: Pair, operation: str) -> None:
    await pair.one.disconnect()
    assert not pair.one.is_connected
    with pytest.raises(StateError, match=r"connect\(\)") as caught:
        await OPERATIONS[operation](pair.one)
    assert code(caught) == "STATE_NOT_CONNECTED"


async def test_connect_and_disconnect_are_idempotent(manager: StateManager) -> None:
    assert manager.is_connected
    await manager.connect()
    await manager.save_agent_state(agent("a"))
    await manager.disconnect()
    await manager.disconnect()
    assert not manager.is_connected
    await manager.connect()
    assert manager.is_connected
    await manager.save_agent_state(agent("b"))


async def test_disconnecting_clears_the_memory_and_never_redis(manager: StateManager) -> None:
    await manager.save_agent_state(agent("a"))
    await manager.disconnect()
    await manager.connect()
    found = await manager.get_agent_state("a")
    assert (found is None) == isinstance(manager, InMemoryStateManager)


def test_models_have_no_field_that_storage_needs() -> None:
    names = [*AgentState.model_fields, *WorkflowState.model_fields, *TaskResult.model_fields]
    assert not any(name.startswith("_") or ":" in name for name in names)
