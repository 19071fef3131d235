"""(c) Celery tasks with results, one worker with one prefork child each."""

from dataclasses import dataclass

from benchmarks.harness import Child, Crew, Plan, interleave
from benchmarks.lag import quantile
from benchmarks.peers import is_installed
from benchmarks.table import Row, compare

_COUNT = 250
_ONE_BY_ONE = 30
# More and shorter than elsewhere: what else runs on the machine hits processes that take turns hardest.
_ROUNDS = 10
_START_SECONDS = 60.0
_OURS = "Conductor.dispatch"
_NATURAL = "Celery as it comes"
_TARGETS = {_NATURAL: 1.0}
_TASK = "benchmark.echo"
_PLAIN, _CONDUCTOR = "benchmarks.celery_plain", "benchmarks.celery_conductor"
_AGENT, _AGENT_ID = "benchmarks.agent:EchoAgent", "benchmark-agent"


@dataclass(frozen=True)
class _Peer:
    label: str
    role: tuple[str, ...]
    worker: str
    needs: str = "celery"
    arguments: tuple[str, ...] = ()


_NODE = (f"{_CONDUCTOR}:app", ("--agent", _AGENT))
_PEERS = [
    _Peer(_OURS, ("conductor-tasks",), _NODE[0], "conductor.client", _NODE[1]),
    _Peer(
        "a plain task of Conductor's app",
        ("plain-celery", f"{_CONDUCTOR}:app", _TASK),
        _NODE[0],
        "conductor.client",
        _NODE[1],
    ),
    _Peer(_NATURAL, ("plain-celery", f"{_PLAIN}:natural", _TASK), f"{_PLAIN}:natural"),
    _Peer(
        "Celery with acks_late, events, track_started, prefetch 1",
        ("plain-celery", f"{_PLAIN}:guaranteed", _TASK),
        f"{_PLAIN}:guaranteed",
        arguments=("-E",),
    ),
]


def measure(plan: Plan) -> list[Row]:
    """Many at once, and one at a time."""
    peers = [peer for peer in _PEERS if is_installed(peer.needs)]
    absent = {peer.label: "skipped: not installed" for peer in _PEERS if peer not in peers}
    count = plan.size(_COUNT)
    rates: dict[str, list[float]] = {peer.label: [] for peer in peers}
    p50: dict[str, list[float]] = {peer.label: [] for peer in peers}
    with Crew() as crew:
        _start_workers(crew, peers, plan.url)
        children = {peer.label: _child(crew, peer, plan.url) for peer in peers}
        for child in children.values():
            # Sent before the worker is there, so the answer says that it is.
            child.call("run", timeout=_START_SECONDS, count=max(20, count // 5))
        for label in interleave(children, plan.rounds if plan.quick else _ROUNDS):
            rates[label].append(count / children[label].call("run", count=count))
            took = children[label].call("one_by_one", count=plan.size(_ONE_BY_ONE))
            p50[label].append(1000 * quantile(took, 0.5))
    return [
        *compare("c", "task with result", "tasks/s", rates, ours=_OURS, targets=_TARGETS, notes=absent),
        *compare("c", "task, one at a time, p50", "ms", p50, ours=_OURS, notes=absent, lower_is_better=True),
    ]


def _child(crew: Crew, peer: _Peer, url: str) -> Child:
    arguments = peer.role if peer.role == ("conductor-tasks",) else (*peer.role, url)
    return crew.child(*arguments, environment=_environment(url))


def _start_workers(crew: Crew, peers: list[_Peer], url: str) -> None:
    """One worker an application: both of ours run on the same node."""
    for app, arguments in {peer.worker: peer.arguments for peer in peers}.items():
        name = _AGENT_ID if app.startswith(_CONDUCTOR) else app.rpartition(":")[2]
        crew.celery_worker(app, name, *arguments, environment=_environment(url))


def _environment(url: str) -> dict[str, str]:
    return {"BENCHMARK_URL": url, "CONDUCTOR_BROKER_URL": url, "CONDUCTOR_REDIS__URL": url}
