"""A workflow file is read with its variables, and every mistake in it is named with field and value."""

from pathlib import Path

import pytest

from conductor.cli.values import parse_pairs
from conductor.cli.workflow_file import load_workflow
from conductor.core.enums import AgentType, WorkflowPhase
from conductor.core.exceptions import ConfigurationError

HEAD = "name: demo\nvars:\n  project: ./code\n  limit: 7\n  needed:\n"
GOOD = f"""{HEAD}
tasks:
  - name: build
    assigned_to: devops
    timeout_seconds: 30
    input_data: {{project: "${{vars.project}}", workspace: "${{vars.workspace}}", wheel: dist/demo.whl}}
  - name: review
    assigned_to: review
    input_data:
      complexity_threshold: ${{vars.limit}}
      note: at most ${{vars.limit}} in ${{vars.workspace}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flow" / "workflow.yaml"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_variables_keep_their_type_and_paths_are_relative_to_the_file(file: Path, tmp_path: Path) -> None:
    workflow = load_workflow(write(file, GOOD), {}, tmp_path / "workspaces")
    build, review = workflow.definition.tasks
    assert build.input_data["project"] == str(file.parent / "code")
    assert build.input_data["workspace"] == str(tmp_path / "workspaces" / workflow.definition.workflow_id)
    assert build.input_data["wheel"] == str(file.parent / "dist/demo.whl")
    assert build.timeout_seconds == 30
    assert review.input_data["complexity_threshold"] == 7
    assert review.input_data["note"] == f"at most 7 in {build.input_data['workspace']}"


def test_tasks_are_in_the_order_of_their_phases(file: Path, tmp_path: Path) -> None:
    workflow = load_workflow(write(file, GOOD), {}, tmp_path)
    assert [task.assigned_to for task in workflow.ordered_tasks] == [AgentType.REVIEW, AgentType.DEVOPS]
    assert set(workflow.phases.values()) == {WorkflowPhase.DEVELOPMENT, WorkflowPhase.DEVOPS}


def test_a_path_that_is_set_is_relative_to_the_working_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workflow = load_workflow(write(file, GOOD), parse_pairs(["project=mine", "limit=9"], "--set"), tmp_path)
    assert workflow.definition.tasks[0].input_data["project"] == str(tmp_path / "mine")
    assert workflow.definition.tasks[1].input_data["complexity_threshold"] == 9


def test_dependencies_references_and_a_limit_are_for_the_run(file: Path, tmp_path: Path) -> None:
    text = f"""{HEAD}
timeout_seconds: 90
tasks:
  - {{name: run the tests, assigned_to: test, depends_on: [code]}}
  - {{name: code, assigned_to: coding}}
  - name: ship
    assigned_to: devops
    input_data: {{passed: "${{tasks.run the tests.passed}}", note: "${{vars.limit}} of ${{tasks.code.n}}"}}
"""
    definition = load_workflow(write(file, text), {}, tmp_path).definition
    assert definition.timeout_seconds == 90
    assert definition.tasks[0].depends_on == ["code"]
    assert definition.tasks[2].input_data == {
        "passed": "${tasks.run the tests.passed}",
        "note": "7 of ${tasks.code.n}",
    }
    assert definition.variables["limit"] == 7
    assert "needed" not in definition.variables


def test_every_load_is_a_run_of_its_own(file: Path, tmp_path: Path) -> None:
    first, second = (load_workflow(write(file, GOOD), {}, tmp_path) for _ in range(2))
    assert first.definition.workflow_id != second.definition.workflow_id
    assert first.definition.tasks[0].task_id != second.definition.tasks[0].task_id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it must be a mapping with 'name' and 'tasks', not nothing"),
        ("- a\n", "it must be a mapping with 'name' and 'tasks', not a list"),
        ("name: [", "line 1, column 8: it is not YAML: "),
        ("name: a\n\tb: c", "it is not YAML"),
        ("name: a", "tasks: it must be a list of at least one task; it is missing"),
        ("name: a\ntasks: []", "tasks: it must be a list of at least one task; it is empty"),
        ("name: a\ntasks: [build]", "tasks[0]: it must be a mapping with a 'name', not 'build'"),
        ("name: a\ntasks: [{name: t}]", "tasks[0].assigned_to: it is missing; choose coding, review"),
        (
            "name: a\ntasks: [{name: t, assigned_to: codng}]",
            "tasks[0].assigned_to: 'codng' is not one (did you mean 'coding'?); choose coding",
        ),
        ("tasks: [{name: t, assigned_to: coding}]", "name: it is missing"),
        ("name: a\ntasks: [{assigned_to: coding}]", "tasks[0].name: it is missing"),
        (
            "name: a\ntasks: [{name: t, assigned_to: coding, timeout_seconds: 0}]",
            "tasks[0].timeout_seconds: 0 cannot be used: Input should be greater than or equal to 1",
        ),
        (
            "name: a\ntasks: [{name: t, assigned_to: coding, timeout: 5}]",
            "tasks[0].timeout: there is no such field (did you mean 'timeout_seconds'?)",
        ),
        (
            "name: a\ntasks: [{name: t, assigned_to: test, input_dta: {x: '${tasks.s.y}'}}]",
            "tasks[0].input_dta: there is no such field (did you mean 'input_data'?)",
        ),
        ("nmae: a\ntasks: [{name: t}]", "nmae: there is no such field (did you mean 'name'?)"),
        ("name: a\ntask: [{name: t}]", "task: there is no such field (did you mean 'tasks'?)"),
        ("name: a\ntasks: [{nmae: t}]", "tasks[0].nmae: there is no such field (did you mean 'name'?)"),
        ("name: a\ntask: []\ntasks: [{name: t, assigned_to: coding}]", "(did you mean 'tasks'?)"),
        (
            "name: a\nphases: [dev]\ntasks: [{name: t, assigned_to: coding}]",
            "phases[0]: 'dev' is not one (did you mean 'devops'?); choose development, devops, monitoring",
        ),
        (
            "name: a\nphases: [devops]\ntasks: [{name: t, assigned_to: coding}]",
            "tasks[0].assigned_to: 'coding' works in phase development, not among 'phases'",
        ),
        (
            "name: a\nphases: [devops, devops]\ntasks: [{name: t, assigned_to: devops}]",
            "phases: a phase is named twice: devops, devops",
        ),
        (
            f"{HEAD}tasks: [{{name: t, assigned_to: coding, input_data: {{p: '${{vars.projct}}'}}}}]",
            "tasks[0].input_data.p: ${vars.projct} is unknown (did you mean 'project'?)",
        ),
        (
            f"{HEAD}tasks: [{{name: 'x ${{project}}', assigned_to: coding}}]",
            "tasks[0].name: ${project} is not a variable; they are written ${vars.NAME}",
        ),
        (
            f"{HEAD}tasks: [{{name: '${{vars.needed}}', assigned_to: coding}}]",
            "tasks[0].name: ${vars.needed} has no value: give one with --set needed=VALUE",
        ),
        (
            "name: a\ntasks: [{name: t, assigned_to: coding, depends_on: [u]}, {name: v, assigned_to: test}]",
            "tasks[0].depends_on[0]: there is no task 'u'; there are 't', 'v'",
        ),
        (
            "name: a\ntasks: [{name: t, assigned_to: coding, depends_on: [v]},"
            " {name: v, assigned_to: test, depends_on: [t]}]",
            "tasks[0].depends_on: tasks need each other: t -> v -> t",
        ),
        (
            "name: a\ntasks: [{name: t, assigned_to: coding, input_data: {n: '${tasks.u.n}'}}]",
            "tasks[0].input_data.n: ${tasks.u.n} names no task; there are 't'",
        ),
        (
            "name: a\ntasks: [{name: '${tasks.t.n}', assigned_to: coding}]",
            "tasks[0].name: ${tasks.t.n} has a value only in the input_data of a task",
        ),
        (
            "name: a\ntimeout_seconds: 0\ntasks: [{name: t, assigned_to: coding}]",
            "timeout_seconds: 0 cannot be used",
        ),
        ("name: a\nvariables: {}\ntasks: []", "variables: in a file they are called 'vars'"),
        ("name: a\nvars: [1]\ntasks: []", "vars: it must be a mapping of names to values, not a list"),
        (
            "name: a\nworkflow_id: x\ntasks: [{name: t, assigned_to: coding}]",
            "workflow_id: every run gives its own",
        ),
        (
            "name: a\ntasks: [{name: t, task_id: x, assigned_to: coding}]",
            "tasks[0].task_id: every run gives its own",
        ),
        (
            "name: a\ntasks: [{name: t, assigned_to: coding, input_data: []}]",
            "tasks[0].input_data: [] cannot be used",
        ),
    ],
)
def test_a_mistake_is_named_with_its_field_and_value(
    text: str, said: str, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_workflow(write(file, text), {}, tmp_path)
    assert caught.value.message.startswith(f"{file}: ")
    assert said in caught.value.message


def test_a_variable_that_the_workflow_has_not_cannot_be_set(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"no variable 'projekt' to set \(did you mean 'project'\?\)"
    ):
        load_workflow(write(file, GOOD), {"projekt": "x"}, tmp_path)


def test_what_cannot_be_read_is_explained(file: Path, tmp_path: Path) -> None:
    write(file, "").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigurationError, match="it is not UTF-8 text"):
        load_workflow(file, {}, tmp_path)
    with pytest.raises(ConfigurationError, match="it cannot be read: Is a directory"):
        load_workflow(tmp_path, {}, tmp_path)


def test_values_are_read_as_yaml_and_paths_as_they_are() -> None:
    pairs = ["a=1", "b=true", "c=[x, 2]", "d=plain: text: {", "e=", "f=2020-01-01", "project=no", "g=x=y"]
    assert parse_pairs(pairs, "--set") == {
        "a": 1,
        "b": True,
        "c": ["x", 2],
        "d": "plain: text: {",
        "e": "",
        "f": "2020-01-01",
        "project": "no",
        "g": "x=y",
    }
