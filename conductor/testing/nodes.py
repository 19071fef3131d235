"""Agent nodes for tests: Celery workers, each a process of its own."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

from conductor.cli.fleet import Fleet
from conductor.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from conductor.agents.base import BaseAgent
    from conductor.cli.node_process import NodeProcess
    from conductor.client import Conductor
    from conductor.core.config import ConductorConfig

logger = logging.getLogger(__name__)


class AgentNodes:
    """`async with AgentNodes(conductor) as nodes` ends all nodes that it started; belongs to one event loop.

    Nodes have the conductor's configuration and find modules where this process does. One that dies stays
    dead. Their agents leave neither states nor queues.
    """

    def __init__(self, conductor: Conductor) -> None:
        self._fleet = Fleet(conductor, _note, temporary=True, restarts=False, path=_own_path())
        self._numbers: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._fleet.stop()

    @property
    def agent_ids(self) -> list[str]:
        """The ids of all agents, in the order in which they were started."""
        return self._fleet.agent_ids

    async def start(
        self,
        agent: str | Callable[[str, ConductorConfig], BaseAgent],
        count: int = 1,
        *,
        agent_id: str | None = None,
    ) -> list[str]:
        """Start nodes for an agent, and give the agents' ids when all are ready.

        `agent` is a class, or a function with `@agent`, at the top of a module, or a name as for
        `conductor up --agents`. Ids are counted up, as shout-1 and shout-2, unless there is one node and
        `agent_id`. Raises ConfigurationError, code BAD_AGENT, for what has no place in a module, and
        ConductorError, code NODE_FAILED, with the end of its log for a node that does not start.
        """
        if agent_id is not None and count != 1:
            raise ConfigurationError(f"agent_id {agent_id!r} is one id, and {count} nodes were asked for.")
        name = agent if isinstance(agent, str) else _name_of(agent)
        base = name.rpartition(":")[2].lower()
        ids = [agent_id] if agent_id else [self._next_id(base) for _ in range(count)]
        await self._fleet.start([(name, each) for each in ids])
        return ids

    async def stop(self, agent_id: str) -> None:
        """End a node, which finishes its task before, for 10 s at most."""
        await self._fleet.node(agent_id).stop()

    def kill(self, agent_id: str) -> None:
        """Kill all processes of a node, as a machine that fails would."""
        self._fleet.node(agent_id).kill()

    def log(self, agent_id: str) -> str:
        """What a node has logged so far."""
        path: Path = self._fleet.node(agent_id).log
        return path.read_text(errors="replace") if path.exists() else ""

    def _next_id(self, base: str) -> str:
        self._numbers[base] += 1
        return f"{base}-{self._numbers[base]}"


def _note(kind: str, node: NodeProcess, sentence: str) -> None:
    logger.info("%s", sentence)


def _name_of(agent: Callable[[str, ConductorConfig], BaseAgent]) -> str:
    module, name = getattr(agent, "__module__", ""), getattr(agent, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        raise ConfigurationError(
            f"A node cannot import {agent!r}: an agent for nodes is a class, or a function with @agent, at "
            "the top of a module.",
            "BAD_AGENT",
        )
    return f"{module}:{name}"


def _own_path() -> list[str]:
    """Where this process finds modules, but for what every process with this Python has."""
    ours = (sys.prefix, sys.base_prefix)
    return [entry or str(Path.cwd()) for entry in sys.path if not entry.startswith(ours)]
