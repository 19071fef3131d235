"""redis.asyncio by hand: one hash per agent, one JSON value per field, as RedisStateManager keeps them."""

from itertools import islice

import redis.asyncio
from pydantic_core import from_json, to_json

from benchmarks.peers.state_base import WIDTH, StateRole
from conductor.core.state import AgentState


class RawState(StateRole):
    """HSET alone: no index, so nothing to list by."""

    prefix = "benchmark:hash"

    async def open(self) -> None:
        """Make the client."""
        self._client = redis.asyncio.Redis.from_url(self.url)

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def save_one(self, state: AgentState) -> None:
        """One command, one round trip."""
        await self._client.hset(self._key(state.agent_id), mapping=self._encode(state))

    async def get_one(self, agent_id: str) -> AgentState | None:
        """One command, one round trip."""
        return self._decode(await self._client.hgetall(self._key(agent_id)))

    async def list_all(self) -> list[AgentState]:
        """Not without an index."""
        raise NotImplementedError

    async def save_all(self, states: list[AgentState]) -> None:
        """Pipelines of WIDTH."""
        rest = iter(states)
        while some := list(islice(rest, WIDTH)):
            pipeline = self._client.pipeline(transaction=False)
            for state in some:
                self._queue_save(pipeline, state)
            await pipeline.execute()

    async def get_all(self, states: list[AgentState]) -> None:
        """Pipelines of WIDTH."""
        rest = iter(states)
        while some := list(islice(rest, WIDTH)):
            found = await self._get_many([state.agent_id for state in some])
            self._check(found == some, "get")

    async def _get_many(self, ids: list[str]) -> list[AgentState | None]:
        pipeline = self._client.pipeline(transaction=False)
        for agent_id in ids:
            pipeline.hgetall(self._key(agent_id))
        return [self._decode(fields) for fields in await pipeline.execute()]

    def _queue_save(self, pipeline: "redis.asyncio.client.Pipeline", state: AgentState) -> None:
        pipeline.hset(self._key(state.agent_id), mapping=self._encode(state))

    def _key(self, agent_id: str) -> str:
        return f"{self.prefix}:{agent_id}"

    @staticmethod
    def _encode(state: AgentState) -> dict[str, bytes]:
        return {name: to_json(value) for name, value in state}

    @staticmethod
    def _decode(fields: dict[bytes, bytes]) -> AgentState | None:
        if not fields:
            return None
        return AgentState.model_validate({name.decode(): from_json(value) for name, value in fields.items()})


class IndexedRawState(RawState):
    """MULTI, HSET, ZADD to the index by age, EXEC in one round trip: the least that can also be listed."""

    prefix = "benchmark:indexed"

    async def save_one(self, state: AgentState) -> None:
        """One transaction, one round trip."""
        pipeline = self._client.pipeline(transaction=True)
        self._queue_save(pipeline, state)
        await pipeline.execute()

    async def save_all(self, states: list[AgentState]) -> None:
        """Transactions of WIDTH."""
        rest = iter(states)
        while some := list(islice(rest, WIDTH)):
            pipeline = self._client.pipeline(transaction=True)
            for state in some:
                self._queue_save(pipeline, state)
            await pipeline.execute()

    async def list_all(self) -> list[AgentState]:
        """The index, then pipelines of WIDTH."""
        ids = [agent_id.decode() for agent_id in await self._client.zrange(self._index, 0, -1, desc=True)]
        found: list[AgentState | None] = []
        for first in range(0, len(ids), WIDTH):
            found += await self._get_many(ids[first : first + WIDTH])
        return [state for state in found if state is not None]

    @property
    def _index(self) -> str:
        return f"{self.prefix}-index"

    def _queue_save(self, pipeline: "redis.asyncio.client.Pipeline", state: AgentState) -> None:
        super()._queue_save(pipeline, state)
        pipeline.zadd(self._index, {state.agent_id: state.created_at.timestamp()})
