"""`conductor up`: servers and agent nodes until a signal comes."""

import asyncio
import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from conductor.broker.addresses import EMBEDDED_GONE, uses_embedded
from conductor.broker.node_spec import find_agent
from conductor.cli.fleet import Fleet
from conductor.cli.metrics import counting, showing
from conductor.cli.node_process import NodeProcess
from conductor.cli.output import Output
from conductor.cli.servers import (
    embedded_if_needed,
    keep_running,
    names,
    refuse_a_runs_server,
    server_of_others_ends,
)
from conductor.cli.values import PATH_NAMES
from conductor.client import Conductor
from conductor.core.config import ConductorConfig, mask_url
from conductor.core.exceptions import ConductorError
from conductor.store.embedded import EmbeddedServer


class Service:
    """The servers and nodes of one `conductor up`."""

    def __init__(
        self,
        config: ConductorConfig,
        agents: Sequence[str],
        count: int,
        output: Output,
        *,
        verbose: bool = False,
    ) -> None:
        self._config = config
        self._agents = agents
        self._count = count
        self._output = output
        self._verbose = verbose

    async def run(self) -> int:
        """Start everything, say how to reach it, and serve until cancelled."""
        agents = _known(self._agents)
        refuse_a_runs_server(self._config)
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(embedded_if_needed(self._config))
            config, metrics = stack.enter_context(counting(self._config))
            conductor = await stack.enter_async_context(Conductor(config, metrics=metrics))
            url = stack.enter_context(showing(config, conductor.addresses, self._output))
            self._say_addresses(conductor, server, url)
            async with Fleet(conductor, self._on_node, self._output.note if self._verbose else None) as fleet:
                try:
                    await fleet.start(await self._named(agents, conductor, fleet))
                    self._say_ready(conductor, fleet, example_input(agents[0]), url)
                    await self._until_cancelled(server)
                except asyncio.CancelledError:
                    self._output.say("stopping; again Ctrl-C does not wait for what agents do")
                    self._output.emit({"event": "stopping"})
                    if server is not None:
                        await self._warn_others(conductor, fleet)
                    raise
        return 0

    async def _named(
        self, agents: Sequence[str], conductor: Conductor, fleet: Fleet
    ) -> list[tuple[str, str]]:
        """Give every agent that is to be started an id."""

        async def taken() -> set[str]:
            return names(await conductor.living_agents())

        pairs: list[tuple[str, str]] = []
        for agent in agents:
            base = agent.rpartition(":")[2].lower() or "agent"
            pairs += [(agent, agent_id) for agent_id in await fleet.reserve(base, self._count, taken)]
        return pairs

    async def _until_cancelled(self, server: EmbeddedServer | None) -> None:
        """Keep our server running, or say it when that of somebody else is gone."""
        if server is not None:
            await keep_running(server)
        elif uses_embedded(self._config):
            await server_of_others_ends(self._config)
            self._output.note(EMBEDDED_GONE)
            self._output.emit({"event": "server_gone", "message": EMBEDDED_GONE})
        await asyncio.Event().wait()

    async def _warn_others(self, conductor: Conductor, fleet: Fleet) -> None:
        """Name the agents of others that lose the server with us."""
        with contextlib.suppress(ConductorError):
            if others := sorted(names(await conductor.living_agents()) - set(fleet.agent_ids)):
                self._output.note(
                    f"{', '.join(others)}, which others started, can do nothing without this server: the "
                    "command that starts first owns it. Start 'conductor up' again, and then these"
                )

    def _say_addresses(self, conductor: Conductor, server: EmbeddedServer | None, url: str | None) -> None:
        broker, redis = (mask_url(url) for url in _urls(conductor))
        # A configured broker may stand beside an embedded Redis.
        embedded = mask_url(server.url) if server else None
        note = f"  (embedded, data in {self._config.data_dir})"
        self._output.say(f"broker  {broker}{note if broker == embedded else ''}")
        if redis != broker:
            self._output.say(f"redis   {redis}{note if redis == embedded else ''}")
        if url is not None:
            self._output.say(f"metrics {url}")
        self._output.say(f"logs    {self._config.data_dir.absolute() / 'logs'}")

    def _say_ready(self, conductor: Conductor, fleet: Fleet, example: str, url: str | None) -> None:
        broker, redis = (mask_url(url) for url in _urls(conductor))
        self._output.say()
        self._output.say("Ready. In another terminal:")
        self._output.say("  conductor run WORKFLOW.yaml")
        self._output.say(f"  conductor dispatch --agent {fleet.agent_ids[0]} --input {example}")
        self._output.say("  conductor listen 'conductor:*'")
        self._output.say(f"From a program: CONDUCTOR_BROKER_URL={broker} CONDUCTOR_REDIS__URL={redis}")
        self._output.say("Ctrl-C stops all.")
        ready = {"event": "ready", "broker_url": broker, "redis_url": redis, "agents": fleet.agent_ids}
        self._output.emit(ready if url is None else ready | {"metrics_url": url})

    def _on_node(self, event: str, node: NodeProcess, sentence: str) -> None:
        if event == "ready":
            self._output.say(f"agent   {sentence}")
        else:
            self._output.note(sentence)
        self._output.emit({"event": f"agent_{event}", "agent_id": node.agent_id, "message": sentence})


def _urls(conductor: Conductor) -> tuple[str, str]:
    return conductor.addresses.broker_url, conductor.addresses.redis_url


def example_input(agent: str) -> str:
    """An input that an agent takes, as it is given to `conductor dispatch --input`."""
    inputs = getattr(importlib.import_module("workers.agents").AGENTS.get(agent), "inputs", ("KEY",))
    return f"{inputs[0]}={'PATH' if inputs[0] in PATH_NAMES else 'VALUE'}"


def _known(agents: Sequence[str]) -> list[str]:
    """All agents there are, or those named; ConfigurationError, code UNKNOWN_AGENT, for a wrong name."""
    # By name: `workers` stands above this package, and a deployment may bring its own.
    known = importlib.import_module("workers.agents").AGENTS
    if any(":" in agent for agent in agents):
        # An installed script has not got it; the nodes get it the same way.
        sys.path.insert(0, str(Path.cwd()))
    for agent in agents:
        find_agent(agent, known)
    return list(agents or known)
