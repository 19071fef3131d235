"""Agents without a broker, and a project to work on."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from conductor.core.config import ConductorConfig
from conductor.core.models import TaskDefinition, TaskResult
from tests.support.projects import make_project
from workers.agents import AGENTS

RunAgent = Callable[..., Awaitable[TaskResult]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def run_agent(tmp_path: Path) -> RunAgent:
    """Run the agent of a short name on a task with the given input."""

    async def run(name: str, **input_data: Any) -> TaskResult:
        agent = AGENTS[name](f"{name}-1", ConductorConfig(data_dir=tmp_path / "data"))
        await agent.start()
        data = {key: str(value) if isinstance(value, Path) else value for key, value in input_data.items()}
        return await agent.execute_task(TaskDefinition(name=f"a {name} task", input_data=data))

    return run
