"""The words of the vocabulary are part of the contract."""

import json
from enum import Enum

import pytest

from conductor.core.enums import AgentStatus, AgentType, MessageType, Priority, TaskStatus, WorkflowPhase

MEMBERS: dict[type[Enum], str] = {
    AgentType: "CODING REVIEW TEST_DATA TEST DEVOPS DEPLOYING MONITOR",
    AgentStatus: "IDLE RUNNING WAITING COMPLETED FAILED CANCELLED",
    WorkflowPhase: "DEVELOPMENT DEVOPS MONITORING",
    MessageType: "TASK_ASSIGNMENT TASK_RESULT STATUS_UPDATE ERROR FEEDBACK CONTROL",
    Priority: "LOW MEDIUM HIGH CRITICAL",
    TaskStatus: "PENDING IN_PROGRESS COMPLETED FAILED BLOCKED SKIPPED",
}


@pytest.mark.parametrize("enum", MEMBERS)
def test_members_are_their_lower_case_names_in_order(enum: type[Enum]) -> None:
    names = MEMBERS[enum].split()
    assert [member.name for member in enum] == names
    assert [member.value for member in enum] == [name.lower() for name in names]


@pytest.mark.parametrize("enum", MEMBERS)
def test_members_are_strings_in_comparison_text_and_json(enum: type[Enum]) -> None:
    for member in enum:
        assert member == member.value
        assert str(member) == f"{member}" == member.value
        assert json.dumps(member) == f'"{member.value}"'
