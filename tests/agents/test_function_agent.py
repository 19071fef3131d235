"""An async function as an agent: its types at both ends, and the functions that are refused."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field

from conductor import AgentType, ConductorConfig, TaskContext, TaskDefinition, TaskResult, TaskStatus, agent
from conductor.core.exceptions import AgentError, ConductorError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    import conductor as for_type_checkers
    from conductor import TaskHandle as OnlyForTypeCheckers
    from conductor.agents.function import AgentFunction


class Text(BaseModel):
    text: str


class Order(BaseModel):
    """Everything that JSON has no word for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    day: date
    kinds: set[AgentType]
    size: int = Field(default=1, alias="Size", ge=1)

    @computed_field
    def doubled(self) -> int:
        return 2 * self.size


class Names(RootModel[list[str]]):
    pass


@agent("coding")
async def shout(data: Text, context: TaskContext) -> Text:
    """Say it louder.

    And nothing else.
    """
    await context.progress(40, "shouting")
    return Text(text=data.text.upper())


@agent("review", name="mirror", description="Gives back what it got.")
async def mirror(data: Order) -> Order:
    return data


async def execute(kind: AgentFunction[Any, Any], data: dict[str, Any]) -> TaskResult:
    task = TaskDefinition(name="t", input_data=data)
    return await kind("agent-1", ConductorConfig()).execute_task(task)


def test_it_makes_agents_that_say_who_they_are() -> None:
    made = shout("shout-1", ConductorConfig())
    assert (made.agent_id, made.agent_type) == ("shout-1", AgentType.CODING)
    assert (made.identity.name, made.identity.description) == ("shout", "Say it louder.")
    other = mirror("mirror-1", ConductorConfig()).identity
    assert (other.name, other.description) == ("mirror", "Gives back what it got.")
    assert repr(shout) == "<agent tests.agents.test_function_agent:shout of type coding>"


async def test_the_function_itself_can_be_called() -> None:
    context = shout("shout-1", ConductorConfig()).context(TaskDefinition(name="t"))
    assert await shout.function(Text(text="a"), context) == Text(text="A")


async def test_a_task_goes_in_as_a_model_and_comes_out_as_one() -> None:
    task = shout.task(Text(text="hello"), name="greet", timeout_seconds=7)
    assert (task.name, task.assigned_to, task.timeout_seconds) == ("greet", AgentType.CODING, 7)
    assert task.input_data == {"text": "hello"}
    assert shout.task({"text": "hello"}).name == "shout"
    result = await shout("shout-1", ConductorConfig()).execute_task(task)
    assert result.status is TaskStatus.COMPLETED
    assert result.output_data == {"text": "HELLO"}
    assert shout.output(result) == Text(text="HELLO")


async def test_strict_models_aliases_and_computed_fields_survive_the_way() -> None:
    order = Order(day=date(2026, 1, 2), kinds={AgentType.TEST}, Size=3)
    task = mirror.task(order)
    assert task.input_data == {"day": "2026-01-02", "kinds": ["test"], "Size": 3}
    over_the_wire = TaskDefinition.model_validate_json(task.model_dump_json())
    result = await mirror("mirror-1", ConductorConfig()).execute_task(over_the_wire)
    assert mirror.output(TaskResult.model_validate_json(result.model_dump_json())) == order


async def test_every_shape_of_function_is_called_with_what_it_takes() -> None:
    seen: list[Any] = []

    @agent("test")
    async def nothing() -> None:
        seen.append("nothing")

    @agent("test")
    async def only_data(data):  # type: ignore[no-untyped-def]
        seen.append(data)
        return {"n": data["n"] + 1}

    @agent("test")
    async def only_context(context):  # type: ignore[no-untyped-def]
        seen.append(context.task_id)

    @agent("test")
    async def other_name(about: for_type_checkers.TaskContext) -> None:
        seen.append(about.task_id)

    @agent("test")
    async def unsaid(data, context):  # type: ignore[no-untyped-def]
        seen.append((data, context.agent_id))
        return Text(text="x")

    @agent("test")
    async def counts(data: dict[str, int]) -> dict[str, int]:
        return {"sum": sum(data.values())}

    made = [nothing, only_data, only_context, other_name, unsaid, counts]
    results = [await execute(kind, {"n": 1}) for kind in made]
    assert [result.output_data for result in results] == [{}, {"n": 2}, {}, {}, {"text": "x"}, {"sum": 1}]
    assert seen == ["nothing", {"n": 1}, results[2].task_id, results[3].task_id, ({"n": 1}, "agent-1")]
    assert nothing.output(results[0]) is None
    assert nothing.task().input_data == {}


async def test_what_the_function_does_to_its_input_stays_with_it() -> None:
    @agent("test")
    async def spoil(data: dict[str, Any]) -> None:
        data["list"].append(1)

    task = TaskDefinition(name="t", input_data={"list": []})
    await spoil("agent-1", ConductorConfig()).execute_task(task)
    assert task.input_data == {"list": []}


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (shout, {}, "text: it is missing"),
        (shout, {"text": 5}, "text: 5 is not usable: Input should be a valid string"),
        (mirror, {"day": "soon", "kinds": []}, "day: 'soon' is not usable: "),
        (mirror, {"day": "2026-01-02", "kinds": ["cook"]}, "kinds.0: 'cook' is not usable: "),
        (mirror, {"day": "2026-01-02", "kinds": [], "Size": 0}, "Size: 0 is not usable: "),
        (mirror, {"day": "2026-01-02", "kinds": [], "color": "x"}, "color: 'x' is not usable: Extra inputs"),
        (shout, {"text": object()}, "input: no JSON: "),
    ],
)
async def test_a_wrong_input_is_named_at_both_ends(
    kind: AgentFunction[Any, Any], data: dict[str, Any], said: str
) -> None:
    with pytest.raises(AgentError) as caught:
        kind.task(data)
    assert caught.value.error_code == "TASK_VALIDATION_FAILED"
    assert said in caught.value.message
    made, task = kind("agent-1", ConductorConfig()), TaskDefinition(name="t", input_data=data)
    with pytest.raises(AgentError) as caught:
        await made.execute_task(task)
    assert caught.value.error_code == "TASK_VALIDATION_FAILED"
    assert said in caught.value.message
    assert caught.value.task_id == task.task_id
    field = said.partition(":")[0]
    assert caught.value.details["problems"][0]["field"] == field
    assert made.state.failed_tasks == []


def test_many_problems_are_told_and_counted() -> None:
    @agent("test")
    async def add(data: dict[str, int]) -> None: ...

    with pytest.raises(AgentError, match=r"a0: 'x' .*; a4: 'x' .*; and 3 more") as caught:
        add.task({f"a{number}": "x" for number in range(8)})
    assert len(caught.value.details["problems"]) == 8


async def test_an_output_of_another_type_is_a_failed_result_that_names_the_field() -> None:
    @agent("coding")
    async def wrong() -> Text:
        return Text.model_construct(text=7)  # type: ignore[arg-type]

    @agent("coding")
    async def forgetful() -> Text:
        pass  # type: ignore[return]

    @agent("coding")
    async def talkative() -> None:
        return 7  # type: ignore[return-value]

    @agent("coding")
    async def unwritable() -> dict[str, Any]:
        return {"at": object()}

    for kind, said in [
        (wrong, "wrong returned what is not of its return type: text: 7 is not usable"),
        (forgetful, "output: None is not usable: Input should be an object"),
        (talkative, "output: 7 is not usable"),
        (unwritable, "output: no JSON"),
    ]:
        result = await execute(kind, {})
        assert result.status is TaskStatus.FAILED
        assert said in (result.error_message or "")
        assert result.metadata["error"]["error_code"] == "INVALID_OUTPUT"


async def test_a_dict_that_is_what_the_model_says_is_an_output() -> None:
    @agent("coding")
    async def loose() -> Text:
        return {"text": "x"}  # type: ignore[return-value]

    assert loose.output(await execute(loose, {})) == Text(text="x")


async def test_the_output_of_a_failed_task_is_its_error() -> None:
    @agent("coding")
    async def slow() -> None:
        raise ConductorError("the model is slow", "LLM_TIMEOUT")

    result = await execute(slow, {})
    with pytest.raises(AgentError, match="the model is slow") as caught:
        slow.output(result)
    assert caught.value.error_code == "LLM_TIMEOUT"
    assert (caught.value.agent_id, caught.value.task_id) == ("agent-1", result.task_id)
    skipped = TaskResult(task_id="t", agent_id="a", status=TaskStatus.SKIPPED)
    with pytest.raises(AgentError, match="ended as skipped"):
        slow.output(skipped)


def test_the_output_of_another_agent_is_refused() -> None:
    result = TaskResult(task_id="t", agent_id="a", status=TaskStatus.COMPLETED, output_data={"texts": 1})
    with pytest.raises(AgentError, match="text: it is missing") as caught:
        shout.output(result)
    assert caught.value.error_code == "INVALID_OUTPUT"


async def with_keywords(data: Text, *, loud: bool = True) -> None: ...
async def with_three(data: Text, context: TaskContext, more: int = 1) -> None: ...
async def with_many(*data: Text) -> None: ...
async def turned(context: TaskContext, data: Text) -> None: ...
async def with_number(data: int) -> None: ...
async def with_list(data: Names) -> None: ...
async def gives_number(data: Text) -> int: ...
async def unknown_type(data: OnlyForTypeCheckers) -> None: ...
async def generates(data: Text) -> Any:
    yield data


def plain(data: Text) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (plain, "plain cannot be an agent: it is not an async function; write 'async def'"),
        (generates, "is not an async function"),
        (with_keywords, "takes 'loud=True'; "),
        (with_many, "takes '*data'; "),
        (with_three, "an agent takes (data, context: TaskContext), one of them, or nothing"),
        (turned, "an agent takes (data, context: TaskContext), one of them, or nothing"),
        (with_number, "has 'int' as the type of 'data'; use a Pydantic model or dict."),
        (with_list, "has 'Names' as the type of 'data'"),
        (gives_number, "has 'int' as the type of 'return'; use a Pydantic model or dict or None."),
        (unknown_type, "has 'OnlyForTypeCheckers' as the type of 'data', which is not to be found"),
    ],
)
def test_a_function_of_another_shape_is_refused_where_it_is_decorated(
    function: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        agent("coding")(function)
    assert caught.value.error_code == "BAD_AGENT"
    assert said in caught.value.message


@pytest.mark.parametrize("wrong", ["cooking", plain, None])
def test_an_unknown_type_of_agent_is_refused_with_those_that_there_are(wrong: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        agent(wrong)
    assert repr(wrong) in caught.value.message
    assert "choose coding, review, test_data, test, devops, deploying, monitor" in caught.value.message
