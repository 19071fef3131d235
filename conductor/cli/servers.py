"""The servers a command works with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from conductor.broker.addresses import find_addresses
from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConductorError, ConfigurationError
from conductor.core.state import AgentState
from conductor.store.embedded import EmbeddedServer

NOTHING_THERE = ("NO_BROKER", "NO_REDIS")


@contextlib.asynccontextmanager
async def embedded_if_needed(config: ConductorConfig) -> AsyncIterator[EmbeddedServer | None]:
    """Start the embedded server where none is configured and none runs; it is ours then, else None."""
    try:
        await asyncio.to_thread(find_addresses, config)
    except ConfigurationError as error:
        if error.error_code not in NOTHING_THERE:
            raise
    else:
        yield None
        return
    server = EmbeddedServer(config.data_dir)
    starting = asyncio.ensure_future(asyncio.to_thread(server.start))
    try:
        await asyncio.shield(starting)
        yield server
    finally:
        with contextlib.suppress(ConductorError):
            await starting
        await asyncio.to_thread(server.stop)


@contextlib.asynccontextmanager
async def running_servers(config: ConductorConfig) -> AsyncIterator[Conductor]:
    """Connect to what is configured or runs already; ConfigurationError, code NO_BROKER or NO_REDIS, else."""
    await asyncio.to_thread(find_addresses, config)
    async with Conductor(config) as conductor:
        yield conductor


async def keep_running(server: EmbeddedServer, interval: float = 0.5) -> None:
    """Start our embedded server again whenever it dies; its port and its data stay."""
    while True:
        await asyncio.sleep(interval)
        if not server.is_running:
            await asyncio.to_thread(server.start)


def free_ids(agent: str, count: int, taken: set[str]) -> list[str]:
    """The next ids for agents of a kind, such as coding-1; `taken` grows by them."""
    base = agent.rpartition(":")[2].lower() or "agent"
    found: list[str] = []
    number = 1
    while len(found) < count:
        if (agent_id := f"{base}-{number}") not in taken:
            found.append(agent_id)
            taken.add(agent_id)
        number += 1
    return found


def names(agents: list[AgentState]) -> set[str]:
    """The ids of agents."""
    return {agent.agent_id for agent in agents}
