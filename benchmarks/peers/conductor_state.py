"""Ours."""

from benchmarks.peers.state_base import StateRole
from conductor.core.state import AgentState
from conductor.store.redis_state import RedisStateManager


class ConductorState(StateRole):
    """The state manager with indexes by age, status and type, versions and change notices."""

    async def open(self) -> None:
        """Connect."""
        self._manager = RedisStateManager(self.url, key_prefix="benchmark:ours:")
        await self._manager.connect()

    async def close(self) -> None:
        """Disconnect."""
        await self._manager.disconnect()

    async def save_one(self, state: AgentState) -> None:
        """Save."""
        await self._manager.save_agent_state(state)

    async def get_one(self, agent_id: str) -> AgentState | None:
        """Get."""
        return await self._manager.get_agent_state(agent_id)

    async def list_all(self) -> list[AgentState]:
        """List."""
        return await self._manager.list_agent_states()
