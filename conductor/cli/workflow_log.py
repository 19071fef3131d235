"""`conductor logs`: what happened in a workflow run, and what happens."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from rich.text import Text

from conductor.cli.board import STYLES
from conductor.cli.output import Output
from conductor.cli.running import find_run
from conductor.cli.servers import Lookout, looking, servers_of_a_run
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import StateError

#: Seconds between two looks for new events.
PAUSE = 0.3
#: What two reports of the same event have in common.
SAME = ("event", "phase", "task_id", "feedback_round", "message")
#: Events that are read at once.
AT_ONCE = 500


async def show_log(config: ConductorConfig, output: Output, workflow_id: str, *, follow: bool) -> int:
    """Show the events of a run, with `follow` until it ends."""
    async with servers_of_a_run(config) as config, looking(config) as lookout:
        workflow_id = (await find_run(lookout, workflow_id)).workflow_id
        async for event in _events(lookout, workflow_id, output, follow=follow):
            output.emit(event)
            if not output.as_json:
                output.say(_line(event))
    return 0


async def _events(
    lookout: Lookout, workflow_id: str, output: Output, *, follow: bool
) -> AsyncIterator[dict[str, Any]]:
    """Give each event once: an engine that takes over repeats what the dead one may not have come to.

    Who follows waits for a store that is away.
    """
    position, seen, away = "", set[str](), False
    while True:
        try:
            # Asked before the events, so that none comes between.
            state = await lookout.state.get_workflow_state(workflow_id)
            found = await lookout.state.workflow_events(workflow_id, position, AT_ONCE)
        except StateError as error:
            if not follow or error.error_code != "STATE_UNAVAILABLE":
                raise
            if not away:
                output.note(f"events cannot be read and are looked for again: {error.message}")
            away = True
            await asyncio.sleep(PAUSE)
            continue
        away = False
        for position, event in found:  # noqa: B007 - where to go on
            what = str([event.get(name) for name in SAME])
            if not event.get("repeated") or what not in seen:
                yield event
            seen.add(what)
        if found:
            continue
        if not follow or state is None or state.is_complete:
            return
        await asyncio.sleep(PAUSE)


def _line(event: dict[str, Any]) -> Text:
    moment = datetime.fromisoformat(event["at"]).astimezone()
    name, message = str(event["event"]), " ".join(str(event.get("message") or "").split())
    # The status is that of the run, or of the task; the end of a phase has its own in the message.
    status, message = (message, "") if name == "phase_ended" and message else (str(event["status"]), message)
    said = [event.get("phase") if name.startswith("phase") else None, event.get("task_name")]
    if round_number := event.get("feedback_round"):
        said.append(f"(feedback {round_number})")
    if name == "task_ended" and event.get("agent_id"):
        said.append(f"by {event['agent_id']}")
    if (seconds := event.get("duration_seconds")) is not None:
        said.append(f"in {seconds:.1f} s")
    if message:
        said.append(f": {message}")
    text = Text(f"{moment:%Y-%m-%d %H:%M:%S}  ", "dim").append(f"{name:<17} ", "bold")
    text.append(
        f"{status:<12}", next((style for known, style in STYLES.items() if known.value == status), "")
    )
    return text.append(" ".join(str(word) for word in said if word).replace(" : ", ": "))
