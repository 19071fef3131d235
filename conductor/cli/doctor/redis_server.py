"""A Redis or Valkey: what it keeps, what it throws away, and whether it tells nodes of tasks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError, ResponseError

from conductor.broker.redis_transport import Channel
from conductor.cli.doctor.clocks import check_clock
from conductor.cli.doctor.findings import Finding, cannot_check, ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor.core.config import ConductorConfig

OLDEST = (6, 2)
NEARLY_FULL = 0.9
#: Extra seconds after which a task that nobody touches should have gone to another node.
SLACK = 60.0


def check_redis(client: Any, name: str, config: ConductorConfig, *, is_broker: bool) -> list[Finding]:
    """Check a server that answers; `name` says what it is for."""
    checks: list[tuple[str, Callable[[str], Finding]]] = [
        (f"{name} version", lambda check: _version(check, client)),
        (f"{name} persistence", lambda check: _persistence(check, client)),
        (f"{name} eviction", lambda check: _eviction(check, client)),
        (f"{name} clock", lambda check: _clock(check, client, config)),
    ]
    if is_broker:
        checks += [
            (f"{name} tracking", lambda check: _tracking(check, client, config)),
            ("visibility timeout", lambda check: _visibility(check, client, config)),
        ]
    return [_allowed(check, do) for check, do in checks]


def _allowed(check: str, do: Callable[[str], Finding]) -> Finding:
    try:
        return do(check)
    except (NoPermissionError, ResponseError) as error:
        return cannot_check(
            check,
            f"The server does not let this user look ({error}).",
            "Look with a user that may, or ask whoever runs the server.",
        )


def _version(check: str, client: Any) -> Finding:
    info = client.info("server")
    name, text = "Redis", str(info["redis_version"])
    if "valkey_version" in info:
        return ok(check, f"Valkey {info['valkey_version']}.")
    if tuple(map(int, text.split(".")[:2])) < OLDEST:
        return problem(check, f"{name} {text} lacks commands that Conductor uses.", "Use Redis 6.2 or newer.")
    return ok(check, f"{name} {text}.")


def _persistence(check: str, client: Any) -> Finding:
    info = client.info("persistence")
    if (bad := _failed_write(info)) is not None:
        return problem(
            check,
            f"The last write to disk failed ({bad}): what came since is in memory only.",
            "Look into the server's log; the disk may be full or not writable.",
        )
    if info["aof_enabled"]:
        return ok(check, "It has an append-only file: a restart loses a second of writes at most.")
    try:
        snapshots = client.config_get("save").get("save", "")
    except ResponseError as error:
        return cannot_check(
            check,
            f"There is no append-only file, and whether there are snapshots cannot be seen ({error}).",
            "Make sure that 'appendonly yes' is set, or accept that a restart loses tasks and state.",
        )
    advice = "Set 'appendonly yes' in its configuration, and: redis-cli config set appendonly yes"
    if snapshots:
        return warning(
            check,
            f"It has snapshots only (save {snapshots}): a crash loses the tasks and state since the last.",
            advice,
        )
    return problem(check, "It keeps nothing on disk: a restart loses all tasks and state.", advice)


def _failed_write(info: dict[str, Any]) -> str | None:
    for field in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(field, "ok") != "ok":
            return f"{field} is {info[field]}"
    return None


def _eviction(check: str, client: Any) -> Finding:
    info = client.info("memory")
    policy, limit, used = info["maxmemory_policy"], int(info["maxmemory"]), int(info["used_memory"])
    if policy != "noeviction":
        advice = "Set 'maxmemory-policy noeviction', and: redis-cli config set maxmemory-policy noeviction"
        if limit:
            meaning = f"When its memory is full it throws keys away ({policy}): tasks or state vanish."
            return problem(check, meaning, advice)
        meaning = f"It would throw keys away ({policy}) as soon as somebody sets 'maxmemory'."
        return warning(check, meaning, advice)
    if limit and used > NEARLY_FULL * limit:
        return warning(
            check,
            f"It uses {used / limit:.0%} of its maxmemory, and refuses writes when that is used up.",
            "Raise 'maxmemory', or let results and states expire: redis.*_expires_seconds.",
        )
    return ok(check, "It throws nothing away (noeviction).")


def _clock(check: str, client: Any, config: ConductorConfig) -> Finding:
    before = time.time()
    seconds, microseconds = client.time()
    here = (before + time.time()) / 2
    return check_clock(check, "the server", seconds + microseconds / 1e6 - here, config.work)


def _tracking(check: str, client: Any, config: ConductorConfig) -> Finding:
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        for command in (("CLIENT", "TRACKING", "ON"), ("CLIENT", "TRACKING", "OFF")):
            connection.send_command(*command)
            connection.read_response()
    except ResponseError as error:
        return warning(
            check,
            f"CLIENT TRACKING is refused ({error}): an idle node looks for tasks only every "
            f"{config.work.restore_interval:g} s.",
            "Allow the nodes' user the command 'client|tracking'.",
        )
    finally:
        pool.release(connection)
    return ok(check, "CLIENT TRACKING works: an idle node hears of a task at once.")


def _visibility(check: str, client: Any, config: ConductorConfig) -> Finding:
    work = config.work
    overdue = work.visibility_timeout + 2 * work.restore_interval + SLACK
    left = client.zcount(Channel.unacked_index_key, "-inf", time.time() - overdue)
    if left:
        return problem(
            check,
            f"Tasks are held by nobody who touches them for more than {overdue:.0f} s ({left}), and no node "
            "gives them back.",
            "Start a node, which takes them over; if nodes run, compare their clocks and their settings.",
        )
    return ok(
        check,
        f"{work.visibility_timeout:g} s, and a node touches what it holds every {work.touch_interval:g} s: "
        "a task may take as long as its timeout_seconds, 3600 s at most.",
    )
