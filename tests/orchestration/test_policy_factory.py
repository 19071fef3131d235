"""Policies as a configuration names them: all that there are, and what every mistake says."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.client import Conductor
from conductor.core.config import ConductorConfig, load_config
from conductor.core.exceptions import ConfigurationError
from conductor.orchestration.policy_engine import PolicyEngine
from conductor.orchestration.policy_factory import BUILT_IN, build_policy_engine

OWN = """
from datetime import time
from typing import TYPE_CHECKING

from conductor import ConfigurationError, Policy, PolicyResult

if TYPE_CHECKING:
    from nowhere import Nothing


class NightOnly(Policy):
    name = "night_only"
    description = "Tasks are for the night."

    def __init__(self, from_hour: int, until: time = time(6)) -> None:
        if from_hour > 23:
            raise ConfigurationError(f"from_hour must be an hour, not {from_hour}.")
        self.from_hour, self.until = from_hour, until

    async def evaluate(self, context):
        return self._allow()


class Untyped(NightOnly):
    name = "untyped"

    def __init__(self, nothing: "Nothing" = None, **more):
        super().__init__(1)
        self.more = more


class Unfinished(Policy):
    pass


def make(hour: int) -> Policy:
    return NightOnly(hour)


def make_nothing():
    return None


class Other:
    pass


a_number = 7
"""


@pytest.fixture(autouse=True)
def _own_policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_policies_of_a_test.py").write_text(OWN)
    (tmp_path / "broken_policies_of_a_test.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("own_policies_of_a_test", None)


def engine(text: str) -> PolicyEngine:
    Path("conductor.yaml").write_text(f"policies:\n{text}\n")
    return build_policy_engine(load_config().policies)


def test_all_that_come_with_conductor_are_known_by_name() -> None:
    made = engine("""
  - max_concurrent_tasks
  - task_timeout:
  - phase_gate: {required_success_rate: 1}
  - agent_availability
  - agent_type_concurrency: {limits: {coding: 2, review: 0}}
  - rate_limit: {max_tasks: 10, period_seconds: 60}
  - rate_limit: {max_tasks: 5, period_seconds: 1.5, per: agent_type, name: hourly}
  - budget: {limit: 100, cost_key: tokens}""")
    assert [policy.name for policy in made.policies] == [
        *("max_concurrent_tasks", "task_timeout", "phase_gate", "agent_availability"),
        *("agent_type_concurrency", "rate_limit", "hourly", "budget"),
    ]
    assert {type(policy) for policy in made.policies} == set(BUILT_IN.values())
    assert [policy.name for policy in made.policies if policy.name in BUILT_IN] == list(BUILT_IN)
    values = [vars(policy) for policy in made.policies]
    assert values[2]["required_success_rate"] == 1
    assert values[4]["limits"] == {"coding": 2, "review": 0}
    assert (values[6]["max_tasks"], values[6]["period_seconds"], values[6]["per"]) == (5, 1.5, "agent_type")
    assert (values[7]["limit"], values[7]["cost_key"]) == (100, "tokens")


def test_ones_own_are_found_in_the_working_directory() -> None:
    made = engine("""
  - own_policies_of_a_test:NightOnly: {from_hour: 8, until: "05:30"}
  - own_policies_of_a_test:Untyped: {anything: [1, x]}""")
    night, untyped = (vars(policy) for policy in made.policies)
    assert (night["from_hour"], str(night["until"])) == (8, "05:30:00")
    assert untyped["more"] == {"anything": [1, "x"]}
    assert engine("  - own_policies_of_a_test:make: {hour: 3}").policy_count == 1


def test_the_environment_takes_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDUCTOR_POLICIES", '["task_timeout", {"budget": {"limit": 5}}]')
    made = build_policy_engine(load_config().policies)
    assert [policy.name for policy in made.policies] == ["task_timeout", "budget"]


def test_what_a_configuration_dumps_it_takes() -> None:
    config = ConductorConfig.model_validate({"policies": ["task_timeout", {"budget": {"limit": 5}}]})
    assert ConductorConfig.model_validate(config.model_dump()) == config


def test_no_policies_are_no_engine(tmp_path: Path) -> None:
    assert Conductor(ConductorConfig(data_dir=tmp_path)).policy_engine is None
    Path("conductor.yaml").write_text("policies:\n")
    assert Conductor(load_config()).policy_engine is None


MISTAKES = [
    ("budgit", ["policies[0]", "'budgit'", "did you mean 'budget'?", "package.module:Class"]),
    ("xyz", ["policies[0]", "'xyz'", "known: max_concurrent_tasks, task_timeout"]),
    ("rate_limit", ["policies[0].rate_limit.max_tasks", "missing"]),
    ("budget: 7", ["policies[0]", "parameters of 'budget' are a mapping", "not a int"]),
    ("7", ["policies[0]", "a policy is a name, or a mapping", "not 7"]),
    ("{budget: {limit: 1}, task_timeout: {}}", ["policies[0]", "has 2 names", "'budget', 'task_timeout'"]),
    ("{}", ["policies[0]", "has 0 names"]),
    (
        "rate_limit: {max_tasks: ten, period_seconds: 60}",
        ["policies[0].rate_limit.max_tasks = 'ten'", "integer"],
    ),
    ("rate_limit: {max_tasks: '5', period_seconds: 1}", ["policies[0].rate_limit.max_tasks = '5'"]),
    ("rate_limit: {max_tasks: true, period_seconds: 1}", ["policies[0].rate_limit.max_tasks = True"]),
    (
        "rate_limit: {max_tasks: -1, period_seconds: 60}",
        ["policies[0].rate_limit.max_tasks = -1", "0 or more"],
    ),
    ("rate_limit: {max_tasks: 1, period_seconds: 0}", ["policies[0].rate_limit.period_seconds = 0", "more"]),
    ("rate_limit: {max_tasks: 1, period_seconds: .inf}", ["policies[0].rate_limit.period_seconds"]),
    (
        "rate_limit: {max_task: 1, period_seconds: 1}",
        ["policies[0].rate_limit.max_task", "did you mean 'max_tasks'?"],
    ),
    ("rate_limit: {max_tasks: 1, period_seconds: 1, per: agent}", ["policies[0].rate_limit.per = 'agent'"]),
    ("max_concurrent_tasks: {max_tasks: -1}", ["policies[0].max_concurrent_tasks.max_tasks = -1"]),
    ("max_concurrent_tasks: {max_tasks: 1.5}", ["policies[0].max_concurrent_tasks.max_tasks = 1.5"]),
    ("task_timeout: {default_timeout: 0}", ["policies[0].task_timeout.default_timeout = 0", "more than 0"]),
    ("phase_gate: {required_success_rate: 2}", ["policies[0].phase_gate.required_success_rate = 2"]),
    ("agent_availability: {x: 1}", ["policies[0].agent_availability.x", "it takes none"]),
    ("agent_type_concurrency: {limits: {}}", ["policies[0].agent_type_concurrency.limits"]),
    ("agent_type_concurrency: {limits: {cooking: 1}}", ["limits = 'cooking'", "coding, review"]),
    ("agent_type_concurrency: {limits: {coding: -2}}", ["agent_type_concurrency.limits.coding = -2"]),
    ("agent_type_concurrency: {limits: {coding: two}}", ["agent_type_concurrency.limits.coding = 'two'"]),
    ("budget: {limit: lots}", ["policies[0].budget.limit = 'lots'"]),
    ("budget: {limit: -5}", ["policies[0].budget.limit = -5"]),
    ("budget: {limit: 5, name: ''}", ["policies[0].budget.name = ''"]),
    ("nowhere.at.all:Policy", ["policies[0] = 'nowhere.at.all:Policy'", "cannot be imported"]),
    ("broken_policies_of_a_test:X", ["cannot be imported", "nothing_of_that_name", "working directory"]),
    ("own_policies_of_a_test:Nothing", ["cannot be imported", "Nothing"]),
    ("own_policies_of_a_test:Other", ["policies[0]", "not a subclass of conductor.Policy"]),
    ("own_policies_of_a_test:a_number", ["policies[0]", "not a subclass of conductor.Policy"]),
    ("own_policies_of_a_test:make_nothing", ["makes a NoneType", "not a conductor.Policy"]),
    ("own_policies_of_a_test:Unfinished", ["policies[0]", "cannot be made", "abstract"]),
    (
        "own_policies_of_a_test:NightOnly: {from_hour: late}",
        ["policies[0].own_policies_of_a_test:NightOnly.from_hour = 'late'"],
    ),
    (
        "own_policies_of_a_test:NightOnly: {from_hour: 99}",
        ["policies[0].own_policies_of_a_test:NightOnly", "from_hour must be an hour, not 99"],
    ),
    ("own_policies_of_a_test:NightOnly: {from_hour: 1, until: soon}", ["NightOnly.until = 'soon'"]),
]


@pytest.mark.parametrize(("text", "parts"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_names_the_field_the_value_and_the_way_out(
    text: str, parts: list[str], tmp_path: Path
) -> None:
    Path("conductor.yaml").write_text(f"policies:\n  - {text}\n")
    with pytest.raises(ConfigurationError) as caught:
        Conductor(load_config())
    assert caught.value.error_code == "CONFIG_ERROR"
    for part in parts:
        assert part in str(caught.value)


def test_a_mistake_is_named_by_its_place() -> None:
    with pytest.raises(ConfigurationError) as caught:
        engine("  - task_timeout\n  - rate_limit: {max_tasks: -1, period_seconds: 1}")
    assert caught.value.details["keys"] == ["policies[1].rate_limit.max_tasks"]


def test_two_of_one_name_are_a_mistake() -> None:
    with pytest.raises(
        ConfigurationError, match=r"policies\[1\]\.budget\.name .*'budget' already, policies\[0\]"
    ):
        engine("  - budget: {limit: 1}\n  - budget: {limit: 2}")


def test_policies_that_are_no_list_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"policies in file 'conductor\.yaml'"):
        engine("  budget: {limit: 1}")
    monkeypatch.setenv("CONDUCTOR_POLICIES", "budget")
    with pytest.raises(ConfigurationError, match="CONDUCTOR_POLICIES is not valid: it must be a JSON list"):
        load_config()


def test_no_secret_in_a_mistake_or_a_repr() -> None:
    secret = "redis://:hunter2@host"
    config = ConductorConfig.model_validate({"policies": [{"budget": {"limit": secret}}]})
    assert "hunter2" not in repr(config)
    with pytest.raises(ConfigurationError) as caught:
        Conductor(config)
    assert "redis://:***@host" in str(caught.value)
    assert "hunter2" not in f"{caught.value} {caught.value.details}"


def test_loading_makes_no_policy_so_nodes_are_not_stopped_by_one() -> None:
    Path("conductor.yaml").write_text("policies: [nowhere.at.all:Policy, budgit]\n")
    assert [setting.name for setting in load_config().policies] == ["nowhere.at.all:Policy", "budgit"]
