"""The agents that come with Conductor, by the short name that is also their type."""

from workers.agents.coding import CodingAgent
from workers.agents.devops import DevOpsAgent
from workers.agents.review import ReviewAgent
from workers.agents.test import TestAgent
from workers.agents.tool_agent import ToolAgent

AGENTS: dict[str, type[ToolAgent]] = {
    agent.agent_type_served.value: agent for agent in (CodingAgent, ReviewAgent, TestAgent, DevOpsAgent)
}
