"""`conductor logs --follow` while the state store goes away and comes back."""

import asyncio
from pathlib import Path

from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager
from tests.store.makers import workflow
from tests.support.cli import LIMIT, background
from tests.support.waiting import wait_until


async def test_following_outlives_an_outage_of_the_store(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data") as server:
        async with RedisStateManager(server.url, retry_seconds=60) as state:
            await state.save_workflow_state(workflow("w", status="in_progress"))
            await _append(state, "workflow_started")
            with background(tmp_path / "data", "logs", "w", "-f", "--json") as command:
                await wait_until(lambda: len(command.out) == 1, timeout=LIMIT)
                await asyncio.to_thread(server.stop)
                await wait_until(
                    lambda: any("are looked for again" in line for line in command.err), timeout=LIMIT
                )
                await asyncio.to_thread(server.start)
                await _append(state, "phase_started")
                await _append(state, "workflow_ended")
                await state.save_workflow_state(workflow("w", status="completed"))
                assert await asyncio.to_thread(command.process.wait, LIMIT) == 0
                await wait_until(lambda: len(command.out) >= 3, timeout=LIMIT)
            names = [event["event"] for event in command.events]
            assert names == ["workflow_started", "phase_started", "workflow_ended"]


async def _append(state: RedisStateManager, name: str) -> None:
    event = {"at": "2026-01-01T00:00:00+00:00", "event": name, "status": "in_progress"}
    await state.append_workflow_event("w", event)
