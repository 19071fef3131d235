"""Everyone who takes part, each in its own best way; a peer that is not installed is skipped and named."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from benchmarks.peers.base import BusPeer

OURS = "conductor"


def is_installed(module: str) -> bool:
    """Whether there is such a module."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@dataclass(frozen=True)
class Entry:
    """One way to publish or request; `needs` is the module without which it cannot take part.

    `share` is its part of the messages of a round: a slow one would only make the run long.
    """

    name: str
    label: str
    target: str
    needs: str
    share: float = 1.0

    @property
    def is_installed(self) -> bool:
        """Whether it can take part here."""
        return is_installed(self.needs)


BUS_PEERS = [
    Entry(OURS, "Conductor", "benchmarks.peers.conductor_bus:ConductorPeer", "conductor.broker.kombu_bus"),
    Entry("faststream", "FastStream", "benchmarks.peers.faststream_redis:FastStreamPeer", "faststream"),
    Entry(
        "faststream-wide",
        "FastStream, max_connections=4096",
        "benchmarks.peers.faststream_redis:WideFastStreamPeer",
        "faststream",
    ),
    Entry("redis", "redis.asyncio", "benchmarks.peers.raw_redis:RedisPeer", "redis"),
    Entry(
        "redis-batch", "redis.asyncio, pipelines of 100", "benchmarks.peers.raw_redis:PipelinePeer", "redis"
    ),
    Entry("kombu", "kombu, one by one", "benchmarks.peers.plain_kombu:KombuPeer", "kombu", 0.25),
    Entry(
        "kombu-batch", "kombu, Producer.batch of 100", "benchmarks.peers.plain_kombu:KombuBatchPeer", "kombu"
    ),
]


def load_bus_peer(name: str) -> "type[BusPeer]":
    """Import the class of a peer."""
    entry = next(entry for entry in BUS_PEERS if entry.name == name)
    module, _, attribute = entry.target.partition(":")
    return cast("type[BusPeer]", getattr(import_module(module), attribute))
