"""Agents made of functions, for nodes that are processes of their own."""

import asyncio
import logging
from pathlib import Path

from pydantic import BaseModel

from conductor import TaskContext, agent
from tests.support.agents import TEST_IS_OVER


class Text(BaseModel):
    """Some text, and a file to wait for before it is worked on."""

    text: str
    wait_for: Path | None = None


class Length(BaseModel):
    """How long a text is."""

    length: int


@agent("monitor")
async def measure(data: Text, context: TaskContext) -> Length:
    """Measure a text, and tell of it in every way there is."""
    await context.progress(40, f"measuring {data.text}")
    context.log.warning("this is %s", "my log")
    await asyncio.to_thread(logging.getLogger("some.library").warning, "this is %s", "a library")
    file = data.wait_for
    # The other one is made at the latest when the test has ended.
    while file and not file.exists() and not file.with_name(TEST_IS_OVER).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    state = await context.state.get_agent_state(context.agent_id)
    assert state is not None
    assert state.current_task_id == context.task_id
    await context.progress(90, "done")
    if data.text == "wrong":
        return Length.model_construct(length="wrong")  # type: ignore[arg-type]
    return Length(length=len(data.text))
