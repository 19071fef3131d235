"""Which agents a node hosts, and under which ids."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING

from conductor.agents.base import BaseAgent
from conductor.broker.topology import AGENT_QUEUE_PREFIX
from conductor.core.channels import validate_name
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConductorError, ConfigurationError

if TYPE_CHECKING:
    from conductor.core.enums import AgentType

AgentFactory = Callable[[str, ConductorConfig], BaseAgent]

#: The first part of the node name when the user gave none.
CELERY_DEFAULT_NAME = "celery"


@dataclass(frozen=True)
class HostedAgent:
    """An agent that a node hosts."""

    agent_id: str
    agent_type: AgentType
    factory: AgentFactory


@dataclass(frozen=True)
class NodeSpec:
    """A node: its name, the part before "@" in Celery, and its agents."""

    name: str
    agents: tuple[HostedAgent, ...]

    def agent_for(self, queue: str, agent_type: AgentType | None) -> HostedAgent:
        """Find the agent for a task that came through `queue`."""
        own = [agent for agent in self.agents if queue == f"{AGENT_QUEUE_PREFIX}{agent.agent_id}"]
        of_type = [agent for agent in self.agents if agent.agent_type == agent_type]
        return (own or of_type or list(self.agents))[0]

    def agent_named(self, agent_id: str) -> HostedAgent | None:
        """Find an agent by its id."""
        return next((agent for agent in self.agents if agent.agent_id == agent_id), None)


def plan_node(
    config: ConductorConfig, known: Mapping[str, AgentFactory], agent: str | None, name: str | None
) -> NodeSpec:
    """Decide what a node hosts.

    `agent` (else `config.node.agent`) is a name in `known` or "package.module:Class"; without one the node
    hosts one agent of each that is known. `name` is what the user called the node, if anything: it is the
    agent's id. Raises ConfigurationError, code UNKNOWN_AGENT or BAD_AGENT, with a sentence for the user.
    """
    chosen = agent or config.node.agent
    factories = {_short_name(chosen): find_agent(chosen, known)} if chosen else dict(known)
    if not factories:
        raise ConfigurationError(
            "This node has no agent to host: name one with --agent NAME or --agent package.module:Class, "
            "or with CONDUCTOR_NODE__AGENT.",
            "UNKNOWN_AGENT",
        )
    kind = next(iter(factories)) if len(factories) == 1 else "all"
    base = name or config.node.agent_id or f"{kind}-{_host()}-{os.getpid()}"
    if len(factories) == 1:
        agents = [_hosted(base, factory, config) for factory in factories.values()]
    else:
        agents = [_hosted(f"{kind}-{base}", factory, config) for kind, factory in factories.items()]
    return NodeSpec(base, tuple(agents))


def find_agent(chosen: str, known: Mapping[str, AgentFactory]) -> AgentFactory:
    """Find an agent by its name or import it; ConfigurationError with code UNKNOWN_AGENT or BAD_AGENT."""
    if chosen in known:
        return known[chosen]
    module_name, colon, attribute = chosen.partition(":")
    if not colon:
        names = ", ".join(sorted(known)) or "none"
        raise ConfigurationError(
            f"There is no agent {chosen!r}. Known agents: {names}. Others are named package.module:Class.",
            "UNKNOWN_AGENT",
        )
    # A script such as `celery` has its own directory there instead; `python -m celery` would have this one.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"The agent {chosen!r} cannot be imported: {_import_problem(module_name, error)}.",
            "UNKNOWN_AGENT",
        ) from error
    if inspect.iscoroutinefunction(found):
        raise ConfigurationError(
            f"{chosen!r} is a function and no agent yet: write @conductor.agent(TYPE) above it.", "BAD_AGENT"
        )
    if not callable(found) or (isinstance(found, type) and not issubclass(found, BaseAgent)):
        raise ConfigurationError(
            f"{chosen!r} is no agent: that is a subclass of conductor.BaseAgent, or a function below "
            "@conductor.agent(TYPE).",
            "BAD_AGENT",
        )
    return found  # type: ignore[no-any-return]


def _import_problem(module_name: str, error: BaseException) -> str:
    """Tell what is wrong in the user's module, and in which line."""
    ours = f"{Path(__file__).parents[1]}{os.sep}"
    frames = [f for f in extract_tb(error.__traceback__) if not f.filename.startswith((ours, "<frozen "))]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, ModuleNotFoundError) and error.name and where:
        return f"it imports {error.name!r}, which is not installed here{where}"
    if where or isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}{'' if isinstance(error, SyntaxError) else where}"
    return f"{error}. It has to be importable from where the node is started, as package.module:Class"


def _hosted(agent_id: str, factory: AgentFactory, config: ConductorConfig) -> HostedAgent:
    try:
        validate_name(agent_id)
        agent = factory(agent_id, config)
    except ConductorError as error:
        raise ConfigurationError(error.message, "BAD_AGENT") from error
    except Exception as error:
        raise ConfigurationError(
            f"The agent {agent_id!r} cannot be made by {_text(factory)}(agent_id, config): "
            f"{type(error).__name__}: {error}",
            "BAD_AGENT",
        ) from error
    if not isinstance(agent, BaseAgent):
        raise ConfigurationError(
            f"{_text(factory)} makes a {type(agent).__name__}, which is not a conductor.BaseAgent.",
            "BAD_AGENT",
        )
    return HostedAgent(agent_id, agent.agent_type, factory)


def _text(factory: AgentFactory) -> str:
    return getattr(factory, "__qualname__", repr(factory))


def _short_name(chosen: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", chosen.rpartition(":")[2] or chosen).lower()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()) or "host"
