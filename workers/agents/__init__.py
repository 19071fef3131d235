"""The agents that come with Conductor, by the short name that is also their type."""

from workers.agents.coding import CodingAgent
from workers.agents.deploying import DeployingAgent
from workers.agents.devops import DevOpsAgent
from workers.agents.monitor import MonitorAgent
from workers.agents.review import ReviewAgent
from workers.agents.test import TestAgent
from workers.agents.test_data import TestDataAgent
from workers.agents.work_agent import WorkAgent

AGENTS: dict[str, type[WorkAgent]] = {
    agent.agent_type_served.value: agent
    for agent in (
        CodingAgent,
        ReviewAgent,
        TestDataAgent,
        TestAgent,
        DevOpsAgent,
        DeployingAgent,
        MonitorAgent,
    )
}
