"""(d) saving, getting and listing the states of agents."""

from dataclasses import dataclass

from benchmarks.harness import Crew, Plan, interleave
from benchmarks.peers import is_installed
from benchmarks.table import Row, compare

_COUNT = 2_000
_OURS = "Conductor"
_HASH = "redis.asyncio, HSET alone"
_INDEXED = "redis.asyncio, MULTI HSET ZADD"
_TARGETS = {_HASH: 0.8, _INDEXED: 0.8}
_WHAT = {
    "save": "save, one by one",
    "save_at_once": "save, 100 at once",
    "get": "get, one by one",
    "get_at_once": "get, 100 at once",
    "list_them": "list of 2,000",
}


@dataclass(frozen=True)
class _Peer:
    label: str
    role: str
    needs: str

    def takes_part(self, command: str) -> bool:
        """Without an index there is no list, and with one a get is what it was."""
        skipped = {_HASH: ("list_them",), _INDEXED: ("get", "get_at_once")}
        return command not in skipped.get(self.label, ())


_PEERS = [
    _Peer(_OURS, "conductor-state", "conductor.store.redis_state"),
    _Peer(_HASH, "raw-state", "redis"),
    _Peer(_INDEXED, "indexed-raw-state", "redis"),
]


def measure(plan: Plan) -> list[Row]:
    """Each command on the same states, in a process per peer, all rounds of one command together."""
    count = plan.size(_COUNT)
    here = {peer.label: peer for peer in _PEERS if is_installed(peer.needs)}
    absent = {peer.label: "skipped: not installed" for peer in _PEERS if peer.label not in here}
    rows = []
    with Crew() as crew:
        children = {label: crew.child(peer.role, plan.url) for label, peer in here.items()}
        for child in children.values():
            child.call("prepare", count=count)
        for command, what in _WHAT.items():
            taking_part = [label for label, peer in here.items() if peer.takes_part(command)]
            for label in taking_part:
                children[label].call(command)
            rounds: dict[str, list[float]] = {label: [] for label in taking_part}
            for label in interleave(taking_part, plan.rounds):
                rounds[label].append(count / children[label].call(command))
            rows += compare(
                "d",
                what,
                "/s",
                rounds,
                ours=_OURS,
                targets=_TARGETS,
                notes=absent if command == "save" else {},
            )
    return rows
