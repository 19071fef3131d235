"""Commands under policies, and the policies of the documentation."""

import json
import re
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from conductor.broker.addresses import Addresses
from conductor.cli.commands import app
from conductor.cli.node_process import node_environment
from conductor.core.config import load_config
from conductor.orchestration.policy_factory import BUILT_IN, build_policy_engine
from tests.support.cli import conductor

DOCUMENT = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
(YAML,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
(PROGRAM,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


def dispatch(config: Path, *arguments: str) -> Result:
    command = ["-c", str(config), "dispatch", "--agent", "nobody-at-all", "--type", "coding", "--no-wait"]
    return CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}).invoke(
        app, [*command, *arguments]
    )


@pytest.fixture
def servers(valkey_url: str) -> str:
    redis = {"url": valkey_url, "key_prefix": f"test-{uuid.uuid4().hex}:"}
    return f"broker_url: {valkey_url}\nredis: {json.dumps(redis)}\n"


@pytest.fixture
def config(servers: str, tmp_path: Path) -> Path:
    file = tmp_path / "conductor.yaml"
    file.write_text(f"{servers}policies: [agent_type_concurrency: {{limits: {{coding: 1}}}}]\n")
    return file


def test_a_denial_is_one_sentence(config: Path) -> None:
    assert dispatch(config).exit_code == 0
    result = dispatch(config, "--name", "look")
    assert result.exit_code == 1
    assert re.fullmatch(
        r"error: Task 'look' \([-0-9a-f]+\) is not dispatched\. Policy 'agent_type_concurrency' denies it: "
        r"As many tasks for coding agents are under way as may be at the same time: 1 of at most 1\.\n",
        result.output,
    )


def test_the_command_waits_for_policies_as_long_as_it_is_told(config: Path) -> None:
    dispatch(config)
    result = dispatch(config, "--policy-wait", "0.3")
    assert result.exit_code == 1
    assert re.search(r"is not dispatched, after \d+\.\d s of waiting\. Policy", result.output)
    assert dispatch(config, "--policy-wait", "-1").exit_code == 2


@pytest.mark.parametrize(
    "command",
    [["up"], ["dispatch", "-t", "coding"], ["publish", "conductor:broadcast"], ["listen", "conductor:*"]],
)
def test_a_mistake_in_the_policies_ends_every_command(command: list[str], tmp_path: Path) -> None:
    config = tmp_path / "conductor.yaml"
    config.write_text(f"data_dir: {tmp_path / 'data'}\npolicies: [rate_limit: {{max_tasks: -1}}]\n")
    result = CliRunner().invoke(app, ["-c", str(config), *command])
    assert result.exit_code == 2
    assert "policies[0].rate_limit.period_seconds is not valid: it is missing" in " ".join(
        result.output.split()
    )


def test_the_policies_of_the_documentation_are_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "freezing.py").write_text(PROGRAM)
    (tmp_path / "conductor.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [policy.name for policy in build_policy_engine(load_config().policies).policies]
    assert sorted(names) == sorted([*BUILT_IN, "in_bursts", "customer_freeze"])
    assert set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)) == set(BUILT_IN)


def test_the_policy_of_ones_own_denies(servers: str, tmp_path: Path) -> None:
    (tmp_path / "freezing.py").write_text(PROGRAM)
    (tmp_path / "conductor.yaml").write_text(f"{servers}{YAML}")
    # As a person types it, an installed script: its directory is not the working directory.
    order = ["dispatch", "--agent", "nobody-at-all", "--type", "review", "--no-wait", "--input"]
    frozen = conductor(tmp_path / "data", *order, "customer=acme", cwd=tmp_path)
    assert frozen.returncode == 1
    assert "Policy 'customer_freeze' denies it: acme is frozen." in frozen.stderr
    welcome = conductor(tmp_path / "data", *order, "customer=another", cwd=tmp_path)
    assert welcome.returncode == 0, welcome.stderr


def test_nodes_get_no_policies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONDUCTOR_POLICIES", '["nowhere.at.all:Policy"]')
    addresses = Addresses("redis://broker.example", "redis://redis.example")
    told = node_environment(load_config(), addresses, "coding")
    assert "CONDUCTOR_REDIS" in told
    assert "CONDUCTOR_POLICIES" not in told
