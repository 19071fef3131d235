"""What agents take as input, and what they say of anything else."""

import re
from pathlib import Path

import pytest

from conductor.core.enums import TaskStatus
from conductor.core.messages import FeedbackPayload
from tests.workers.conftest import RunAgent
from workers.agents import AGENTS
from workers.agents.tool_agent import ToolAgent

DOC = (Path(__file__).parents[2] / "docs" / "shipped-agents.md").read_text()


@pytest.mark.parametrize("name", AGENTS)
async def test_an_unknown_input_is_refused_with_the_known_ones(run_agent: RunAgent, name: str) -> None:
    result = await run_agent(name, colour="red")
    assert result.status is TaskStatus.FAILED
    known = ", ".join(AGENTS[name].inputs)
    said = f"the task's input has 'colour', which this agent does not take; it takes {known}"
    assert (result.error_message or "").startswith(said)


async def test_a_misspelled_input_is_refused_with_the_one_meant(run_agent: RunAgent, project: Path) -> None:
    result = await run_agent("review", project=project, complexity_treshold=1)
    assert result.status is TaskStatus.FAILED
    assert "(did you mean 'complexity_threshold'?)" in (result.error_message or "")


async def test_the_feedback_of_a_workflow_is_taken_by_all(run_agent: RunAgent, project: Path) -> None:
    feedback = FeedbackPayload(source_agent_id="monitor-1", severity="error").model_dump(mode="json")
    result = await run_agent("review", project=project, feedback=feedback)
    assert result.status is TaskStatus.COMPLETED


@pytest.mark.parametrize("name", AGENTS)
def test_inputs_are_in_the_docstring_and_in_the_document(name: str) -> None:
    agent = AGENTS[name]
    docstring = f"{agent.__doc__} {ToolAgent.__doc__ if issubclass(agent, ToolAgent) else ''}"
    assert set(agent.inputs) <= set(re.findall(r"`(\w+)`", docstring))
    [row] = re.findall(rf"^\| `{name}` \|[^|]*\|([^|]*)\|", DOC, re.MULTILINE)
    assert set(agent.inputs) - {"project", "workspace"} <= set(re.findall(r"`(\w+)`", row))
