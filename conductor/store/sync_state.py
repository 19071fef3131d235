"""The little that code without an event loop writes, such as the parent process of a Celery worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from conductor.core.fields import utc_now
from conductor.orchestration.state_checks import encode_changes
from conductor.orchestration.state_kinds import AGENT, TASK_RESULT
from conductor.store.endpoint import read_url
from conductor.store.failures import ReplyError, auth_failed, state_error, unavailable
from conductor.store.keyspace import Command, Keyspace
from conductor.store.scripts import all_scripts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.core.exceptions import StateError
    from conductor.core.models import TaskResult

# redis-py makes classes of the first words of these replies and cuts the words off.
_WORDS: list[tuple[type[redis.RedisError], str]] = [
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
]


class SyncState:
    """Writes agent states and task results as RedisStateManager does, blocking.

    For any thread, and for both processes after a fork.

    Args:
        url, key_prefix, expires_seconds: as for RedisStateManager.
        timeout: seconds for connecting and for a reply. A call takes at most about four times that.

    Raises StateError with the codes of RedisStateManager.
    """

    def __init__(
        self,
        url: str,
        key_prefix: str = "conductor:",
        *,
        expires_seconds: Mapping[str, float] | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._endpoint = read_url(url)
        self._keys = Keyspace(key_prefix, self._endpoint.database, expires_seconds)
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            decode_responses=False,
            protocol=2,
            retry=Retry(NoBackoff(), 1),
        )

    def __repr__(self) -> str:
        return f"<SyncState {self._endpoint.shown}>"

    def touch_heartbeat(self, agent_id: str) -> bool:
        """Stamp `last_heartbeat` and `updated_at` of an agent; False where there is none."""
        return self.update_agent_state(agent_id, last_heartbeat=utc_now())

    def update_agent_state(
        self, agent_id: str, *, increment: Mapping[str, int] | None = None, **changes: Any
    ) -> bool:
        """Change fields as StateManager.update_agent_state does; False where there is no such agent."""
        encoded, increments = encode_changes(changes, increment or {})
        return self._run(self._keys.update(agent_id, encoded, increments)) is not None

    def save_task_result(self, result: TaskResult) -> int:
        """Save the result of a task and return its version."""
        fields = TASK_RESULT.encode(result)
        return int(self._run(self._keys.save(TASK_RESULT, result, fields, None, None)))

    def delete_agent_state(self, agent_id: str) -> bool:
        """Delete the state of an agent; False where there was none."""
        return bool(self._run(self._keys.delete(AGENT, agent_id)))

    def close(self) -> None:
        """End the connections; another call makes new ones."""
        self._client.close()

    def _run(self, command: Command) -> Any:
        try:
            try:
                return self._send(*command)
            except redis.exceptions.NoScriptError:
                for script in all_scripts():
                    self._send("SCRIPT LOAD", script.source)
                return self._send(*command)
        except redis.RedisError as error:
            raise self._failure(error) from error

    def _send(self, *command: bytes | str | int) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _failure(self, error: redis.RedisError) -> StateError:
        if isinstance(error, (redis.AuthenticationError, redis.exceptions.NoPermissionError)):
            return auth_failed(self._endpoint, str(error))
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
            return unavailable(self._endpoint, str(error))
        word = next((word for kind, word in _WORDS if isinstance(error, kind)), None)
        reply = str(error) if word is None else f"{word} {error}"
        return state_error(ReplyError(reply), self._endpoint)
