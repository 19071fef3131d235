"""The servers a command works with."""

import asyncio
import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from conductor.broker.addresses import Addresses, find_addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConductorError, ConfigurationError
from conductor.core.state import AgentState
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager

RUN_MARKER = "run.pid"
LOOKS_WITHOUT_SERVER = 3
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
async def servers_for_a_run(config: ConductorConfig) -> AsyncIterator[ConductorConfig]:
    """Give the configuration to run with: as configured, or with what `up` serves, or a server of ours.

    The server of another run is not used, for it ends with that run; ours is in a directory of its own then.
    """
    marker = config.data_dir / RUN_MARKER
    async with contextlib.AsyncExitStack() as stack:
        try:
            lent = config.broker_url is None and config.redis.url is None and _names_a_process(marker)
            server = None if lent else await stack.enter_async_context(embedded_if_needed(config))
        except ConfigurationError as error:
            if error.error_code != "EMBEDDED_IN_USE":
                raise
            lent, server = True, None
        if server is not None:
            marker.write_text(str(os.getpid()))
            stack.callback(marker.unlink, missing_ok=True)
        elif lent:
            config = await _private_server(config, stack)
        yield config


@contextlib.asynccontextmanager
async def servers_of_a_run(config: ConductorConfig) -> AsyncIterator[ConductorConfig]:
    """Give the configuration to find an earlier run with: also the server of another that goes on."""
    configured = config.broker_url is not None or config.redis.url is not None
    if not configured and _names_a_process(config.data_dir / RUN_MARKER):
        yield config
        return
    async with servers_for_a_run(config) as config:
        yield config


async def _private_server(config: ConductorConfig, stack: contextlib.AsyncExitStack) -> ConductorConfig:
    place = config.data_dir / "servers" / uuid.uuid4().hex
    stack.push_async_callback(asyncio.to_thread, shutil.rmtree, place, ignore_errors=True)
    private = config.model_copy(update={"data_dir": place})
    server = await stack.enter_async_context(embedded_if_needed(private))
    assert server is not None
    redis = config.redis.model_copy(update={"url": server.url})
    return config.model_copy(update={"broker_url": server.url, "redis": redis})


def refuse_a_runs_server(config: ConductorConfig) -> None:
    """Raise ConfigurationError, code EMBEDDED_IN_USE, where the only server is one that ends with a run."""
    configured = config.broker_url is not None or config.redis.url is not None
    if not configured and _names_a_process(config.data_dir / RUN_MARKER):
        raise ConfigurationError(
            f"a 'conductor run' has its server in {config.data_dir} and ends it soon: wait for it, or set "
            "CONDUCTOR_DATA_DIR to another directory",
            "EMBEDDED_IN_USE",
        )


def _names_a_process(marker: Path) -> bool:
    """Whether a marker is that of another process which lives."""
    try:
        pid = int(marker.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return False
    return pid != os.getpid()


@dataclass(frozen=True)
class Lookout:
    """What is needed to look: no connection to the broker, which may be away just then."""

    config: ConductorConfig
    addresses: Addresses
    state: RedisStateManager
    dead_letters: DeadLetterQueue


@contextlib.asynccontextmanager
async def looking(config: ConductorConfig) -> AsyncIterator[Lookout]:
    """Connect to the state store; ConfigurationError, code NO_BROKER or NO_REDIS, where there is none."""
    addresses = await asyncio.to_thread(find_addresses, config)
    letters = DeadLetterQueue(config, addresses.broker_url, addresses.redis_url)
    try:
        async with RedisStateManager(addresses.redis_url, config.redis.key_prefix) as state:
            yield Lookout(config, addresses, state, letters)
    finally:
        await letters.close()


@contextlib.asynccontextmanager
async def running_servers(config: ConductorConfig) -> AsyncIterator[Conductor]:
    """Connect to what is configured or runs already; ConfigurationError, code NO_BROKER or NO_REDIS, else."""
    conductor = Conductor(config)
    await asyncio.to_thread(find_addresses, config)
    async with conductor:
        yield conductor


async def keep_running(server: EmbeddedServer, interval: float = 0.5) -> None:
    """Start our embedded server again whenever it dies; its port and its data stay."""
    while True:
        await asyncio.sleep(interval)
        if not server.is_running:
            await asyncio.to_thread(server.start)


async def server_of_others_ends(config: ConductorConfig, interval: float = 1.0) -> None:
    """Return when the embedded server of another process is gone, and not only started again."""
    missed = 0
    while missed < LOOKS_WITHOUT_SERVER:
        await asyncio.sleep(interval)
        running = await asyncio.to_thread(EmbeddedServer.running, config.data_dir)
        missed = 0 if running else missed + 1


def names(agents: list[AgentState]) -> set[str]:
    """The ids of agents."""
    return {agent.agent_id for agent in agents}
