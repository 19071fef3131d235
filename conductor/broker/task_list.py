"""The tasks that wait or run, and what is known of others, from Celery's records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from celery import states

from conductor.broker.records import KEY_PREFIX, record_key, title_in
from conductor.broker.results import agent_of_node, cancelled
from conductor.core.enums import TaskStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from conductor.core.models import TaskResult
    from conductor.store.link import Link

#: Keys that Redis looks at in one step.
_AT_ONCE = 1000
_STATUS = {
    states.PENDING: TaskStatus.PENDING,
    states.RETRY: TaskStatus.PENDING,
    states.STARTED: TaskStatus.IN_PROGRESS,
}
#: How the records of most tasks that have ended begin, which may be long.
_ENDED = tuple(f'{{"status": "{state}"'.encode() for state in (states.SUCCESS, states.FAILURE))


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What Celery's record says of a task."""

    task_id: str
    state: str
    """Celery's word: PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED."""
    name: str
    """What its definition calls it; "" where the record does not say."""
    queue: str
    node: str
    """Where it runs or ran, as agent@machine; "" before that."""
    workflow_id: str
    retries: int
    record: dict[str, Any]
    """All of it."""

    @property
    def status(self) -> TaskStatus | None:
        """PENDING or IN_PROGRESS; None for a task that has ended."""
        return _STATUS.get(self.state)

    @property
    def revoked_result(self) -> TaskResult | None:
        """The result of a task that was revoked, which nobody may have saved; None for any other."""
        if self.state != states.REVOKED:
            return None
        result = cancelled(self.task_id, agent_of_node(self.node))
        try:
            ended = datetime.fromisoformat(str(self.record.get("date_done")))
        except ValueError:
            return result
        ended = ended.replace(tzinfo=ended.tzinfo or UTC)
        return result.model_copy(update={"started_at": ended, "completed_at": ended})

    @property
    def agent_id(self) -> str:
        """Who does it, or did it."""
        return self.node.partition("@")[0]


async def tasks_without_result(link: Link) -> list[TaskRecord]:
    """Find tasks that wait, run or were revoked, in no order; looks at every record. Raises StateError."""
    found: list[TaskRecord] = []
    async for keys in _scan(link, f"{KEY_PREFIX}*"):
        beginnings = await link.run_all([["GETRANGE", key, 0, len(_ENDED[0])] for key in keys])
        going = [
            key
            for key, text in zip(keys, beginnings, strict=True)
            if isinstance(text, bytes) and not text.startswith(_ENDED)
        ]
        tasks = [task for task in await _read(link, going) if task is not None]
        found += [task for task in tasks if task.status is not None or task.state == states.REVOKED]
    return found


async def task_records(link: Link, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """Give the records of tasks, None for those that there are none of. Raises StateError."""
    return await _read(link, [record_key(task_id).encode() for task_id in task_ids])


async def find_ids(link: Link, key_prefix: str, beginning: str) -> list[str]:
    """Find the ids of agents, workflows and tasks that begin so. Raises StateError."""
    found = set[str]()
    escaped = "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in beginning)
    kinds = [f"{key_prefix}{kind}:" for kind in ("agent", "workflow", "task_result")]
    for start in (KEY_PREFIX, *kinds):
        async for keys in _scan(link, f"{start}{escaped}*"):
            found |= {key.decode(errors="replace").removeprefix(start) for key in keys}
    return sorted(found)


async def _scan(link: Link, pattern: str) -> AsyncIterator[list[bytes]]:
    cursor = b"0"
    while True:
        cursor, keys = await link.run(["SCAN", cursor, "MATCH", pattern, "COUNT", _AT_ONCE])
        if keys:
            yield keys
        if int(cursor) == 0:
            return


async def _read(link: Link, keys: Sequence[bytes]) -> list[TaskRecord | None]:
    if not keys:
        return []
    return [_record(raw) for raw in await link.run_all([["GET", key] for key in keys])]


def _record(raw: Any) -> TaskRecord | None:
    try:
        record = json.loads(raw)
        kwargs = record.get("kwargs")
        run = str(kwargs.get("run", "")) if isinstance(kwargs, dict) else ""
        parts = run.split(":")
        return TaskRecord(
            task_id=str(record["task_id"]),
            state=str(record["status"]),
            name=str(record.get("title") or title_in(record.get("args"))),
            queue=str(record.get("queue") or ""),
            node=str(record.get("worker") or ""),
            # Runs that no workflow made have no colon, or one before the id of a reservation.
            workflow_id=unquote(parts[0]) if len(parts) > 1 else "",
            retries=int(record.get("retries") or 0),
            record=record,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
