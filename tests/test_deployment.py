"""What people deploy: the compose file against Compose's own schema, and what it promises."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())


def test_the_compose_file_follows_the_compose_schema() -> None:
    checked = check_schema(COMPOSE_FILE)
    assert checked.returncode == 0, checked.stdout


def test_the_schema_check_refuses_a_wrong_compose_file(tmp_path: Path, compose: dict[str, Any]) -> None:
    compose["services"]["redis"]["imagee"] = "redis"
    (tmp_path / "docker-compose.yml").write_text(yaml.safe_dump(compose))
    checked = check_schema(tmp_path / "docker-compose.yml")
    assert checked.returncode == 1
    assert "imagee" in checked.stdout


def test_every_agent_of_workers_has_a_service(compose: dict[str, Any]) -> None:
    from workers.agents import AGENTS

    hosted = {
        command[command.index("--agent") + 1]
        for service in compose["services"].values()
        if "--agent" in (command := service.get("command", []))
    }
    assert hosted == set(AGENTS)


def test_redis_keeps_its_data_and_rabbitmq_starts_only_on_demand(compose: dict[str, Any]) -> None:
    assert "--appendonly yes" in " ".join(compose["services"]["redis"]["command"])
    assert "redis:/data" in compose["services"]["redis"]["volumes"]
    assert compose["services"]["rabbitmq"]["profiles"] == ["rabbitmq"]
