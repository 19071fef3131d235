"""The nodes that a command started: started again when they die, ended with the command."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from conductor.cli.node_process import Echo, NodeProcess
from conductor.client import Conductor
from conductor.core.enums import AgentStatus
from conductor.core.exceptions import ConductorError
from conductor.core.fields import new_id

logger = logging.getLogger(__name__)

START_LIMIT = 60.0
READY_INTERVAL = 0.05
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
HEALTHY_SECONDS = 60.0

RESERVED_SECONDS = START_LIMIT + 10.0
"""How long an id is kept for an agent that is about to start, should its command die."""

Taken = Callable[[], Awaitable[set[str]]]
"""Gives the ids that agents have."""
Report = Callable[[str, NodeProcess, str], None]
"""Called with "ready", "ended", "failed" or "gone", the node, and a sentence."""


class Fleet:
    """`async with Fleet(...)` ends its nodes at the end, warmly first; cancelled while it does, at once.

    The agents of a `temporary` one leave neither states nor queues. `path` is where their modules may be
    besides. Nodes that die stay dead unless it `restarts` them.
    """

    def __init__(
        self,
        conductor: Conductor,
        report: Report,
        echo: Echo | None = None,
        *,
        temporary: bool = False,
        restarts: bool = True,
        path: Sequence[str] = (),
    ) -> None:
        self._conductor = conductor
        self._report = report
        self._echo = echo
        self._temporary = temporary
        self._restarts = restarts
        self._path = path
        self._nodes: list[NodeProcess] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._agent_ids: list[str] = []
        self._owner = new_id()
        self._reserved: set[str] = set()

    def node(self, agent_id: str) -> NodeProcess:
        """Give the node of an agent; KeyError where it started none."""
        return {node.agent_id: node for node in self._nodes}[agent_id]

    @property
    def agent_ids(self) -> list[str]:
        """The ids of all agents it ever started."""
        return list(self._agent_ids)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def reserve(self, base: str, count: int, taken: Taken) -> list[str]:
        """Take the next ids for agents, such as coding-1, which no other command takes until `start` is done.

        `taken` is asked when an id is ours: who had it may have started its agent just before.
        """
        found: list[str] = []
        number = 1
        while len(found) < count:
            agent_id = f"{base}-{number}"
            number += 1
            if agent_id in self._reserved or not await self._reserve(agent_id):
                continue
            if agent_id in await taken():
                await self._release(agent_id)
                continue
            found.append(agent_id)
        return found

    async def _reserve(self, agent_id: str) -> bool:
        name = f"agent-id:{agent_id}"
        if await self._conductor.state.acquire_lease(name, self._owner, RESERVED_SECONDS):
            self._reserved.add(agent_id)
            return True
        return False

    async def _release(self, *agent_ids: str) -> None:
        with contextlib.suppress(ConductorError):
            for agent_id in agent_ids:
                await self._conductor.state.release_lease(f"agent-id:{agent_id}", self._owner)
                self._reserved.discard(agent_id)

    async def start(self, agents: Iterable[tuple[str, str]]) -> None:
        """Start a node for each pair of an agent's name and id, and return when all are ready.

        ConductorError, code NODE_FAILED, with the end of the log of one that is not; ConfigurationError where
        there is no place for the logs.
        """
        config, addresses = self._conductor.config, self._conductor.addresses
        nodes = [
            NodeProcess(agent, agent_id, config, addresses, self._echo, self._path)
            for agent, agent_id in agents
        ]
        self._nodes += nodes
        self._agent_ids += [node.agent_id for node in nodes]
        try:
            async with asyncio.TaskGroup() as starting:
                tasks = [starting.create_task(self._start(node)) for node in nodes]
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        await self._release(*self._reserved)
        failures = [failure for task in tasks if (failure := task.result())]
        if failures:
            raise ConductorError(failures[0], "NODE_FAILED")
        if self._restarts:
            self._keepers += [asyncio.create_task(self._keep(node)) for node in nodes]

    async def stop(self) -> None:
        """End all nodes."""
        await self._release(*self._reserved)
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        nodes, self._nodes = self._nodes, []
        try:
            await asyncio.gather(*(node.stop() for node in nodes))
        finally:
            if self._temporary:
                await self._forget(node.agent_id for node in nodes)

    async def _forget(self, agent_ids: Iterable[str]) -> None:
        try:
            await asyncio.shield(self._conductor.forget_agents(agent_ids))
        except ConductorError as error:
            logger.warning("what the agents of this command left was not deleted: %s", error)

    async def _start(self, node: NodeProcess) -> str | None:
        """Start a node and wait until it is ready; what went wrong otherwise."""
        await node.start()
        ended = asyncio.create_task(node.wait())
        try:
            async with asyncio.timeout(START_LIMIT):
                while not await self._is_ready(node):
                    await asyncio.wait({ended}, timeout=READY_INTERVAL)
                    if ended.done():
                        return _failure(node, f"ended while starting, with code {ended.result()}")
        except TimeoutError:
            return _failure(node, f"was not ready after {START_LIMIT:g} s")
        finally:
            ended.cancel()
        self._report("ready", node, f"{node.agent_id} is ready")
        return None

    async def _is_ready(self, node: NodeProcess) -> bool:
        state = await self._conductor.state.get_agent_state(node.agent_id)
        if state is None or state.last_heartbeat is None or node.started_at is None:
            return False
        return state.last_heartbeat >= node.started_at and state.status is AgentStatus.IDLE

    async def _keep(self, node: NodeProcess) -> None:
        """Start the node again whenever it ends; wait longer each time it ends soon."""
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF
        while True:
            since = loop.time()
            code = await node.wait()
            if await self._was_told_to_end(node, code):
                self._report("gone", node, f"{node.agent_id} ended as it was told")
                return
            backoff = FIRST_BACKOFF if loop.time() - since > HEALTHY_SECONDS else backoff
            sentence = f"{node.agent_id} ended unexpectedly (code {code}); it starts again in {backoff:g} s"
            self._report("ended", node, sentence)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF)
            failure = await self._start_again(node)
            if failure:
                self._report("failed", node, failure)

    async def _start_again(self, node: NodeProcess) -> str | None:
        try:
            failure = await self._start(node)
        except (ConductorError, OSError) as error:
            failure = f"{node.agent_id} does not start: {error}"
        if failure and node.is_running:
            await node.stop()
        return failure

    async def _was_told_to_end(self, node: NodeProcess, code: int) -> bool:
        """Whether a CONTROL message stopped the agent, which is no accident."""
        if code != 0:
            return False
        with contextlib.suppress(ConductorError):
            state = await self._conductor.state.get_agent_state(node.agent_id)
            return state is not None and state.status is AgentStatus.CANCELLED
        return False


def _failure(node: NodeProcess, what: str) -> str:
    words = node.last_words()
    said = f"; its log, {node.log}, ends with:\n{words}" if words else f"; its log is {node.log}"
    return f"the node {node.agent_id} {what}{said}"
