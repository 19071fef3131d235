"""Leases in Redis or Valkey: a string for each, which expires with it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from conductor.orchestration.leases import Leases, checked_seconds

if TYPE_CHECKING:
    from conductor.store.keyspace import Keyspace
    from conductor.store.link import Link


class RedisLeases(Leases):
    """Leases that processes share; every operation is one script, and may be sent again."""

    _keys: Keyspace
    _link: Link

    async def acquire_lease(self, name: str, owner: str, seconds: float) -> bool:
        return await self._lease("acquire", name, owner, checked_seconds(seconds))

    async def renew_lease(self, name: str, owner: str, seconds: float) -> bool:
        return await self._lease("renew", name, owner, checked_seconds(seconds))

    async def release_lease(self, name: str, owner: str) -> bool:
        return await self._lease("release", name, owner, 0)

    async def lease_owner(self, name: str) -> str | None:
        key = self._keys.lease(name)
        owner = await self._link.run(("GET", key), key)
        return None if owner is None else str(owner.decode(errors="surrogatepass"))

    async def _lease(self, wish: str, name: str, owner: str, seconds: float) -> bool:
        key = self._keys.lease(name)
        milliseconds = round(seconds * 1000)
        words = (wish, owner.encode(errors="surrogatepass"), milliseconds)
        return bool(await self._link.run(("EVAL", _script(), 1, key, *words), key))


@cache
def _script() -> str:
    return files(__package__).joinpath("lua", "lease.lua").read_text("utf-8")
