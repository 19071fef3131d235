"""Agents that write log lines in every way there is, for nodes that are processes of their own."""

import asyncio
import contextlib
import logging
import threading

from pydantic import BaseModel

from conductor import AgentMessage, AgentType, BaseAgent, ConductorConfig, TaskContext, TaskResult, agent
from conductor.core.models import TaskDefinition

#: What `talk` says, one line each, whoever writes it.
SAID = [
    "by my log",
    "by a library",
    "in another thread",
    "in an executor",
    "in an asyncio task",
    "by print",
]


class Words(BaseModel):
    """What to say beside all that is said anyway, and whether to fail, or to go on when cancelled."""

    say: str = ""
    fail_with: str = ""
    be_stubborn: bool = False


@agent("test_data")
async def talk(data: Words, context: TaskContext) -> None:
    """Write lines."""
    library = logging.getLogger("some.library")
    loop = asyncio.get_running_loop()
    context.log.warning("by %s", "my log")
    library.warning("by %s", "a library")
    thread = threading.Thread(target=library.warning, args=("in another thread",))
    thread.start()
    await asyncio.to_thread(thread.join)
    await loop.run_in_executor(None, library.warning, "in an executor")
    await asyncio.create_task(_warn(library))
    print("by print")  # noqa: T201
    if data.say:
        library.warning(data.say)
    if data.fail_with:
        raise ValueError(data.fail_with)
    while data.be_stubborn:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def _warn(library: logging.Logger) -> None:
    library.warning("in an asyncio task")


class Listener(BaseAgent):
    """Writes a line about every message."""

    def __init__(self, agent_id: str, config: ConductorConfig) -> None:
        super().__init__(agent_id, AgentType.DEVOPS, config)

    async def _validate_task(self, task: TaskDefinition) -> bool:
        return True

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        raise NotImplementedError

    async def handle_message(self, message: AgentMessage) -> AgentMessage | None:
        """Write a line, and answer what wants an answer."""
        logging.getLogger("some.library").warning("heard %s", message.payload.get("say"))
        return message.create_response(self.agent_id, message.message_type, {"heard": True})
