"""Agents that do what a test tells them, hosted by nodes that are processes of their own."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, MessageType, TaskStatus
from conductor.core.exceptions import AgentError, ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition, TaskResult

#: The name of a file that ends all waiting for files beside it.
TEST_IS_OVER = "the-test-is-over"


class ObedientAgent(BaseAgent):
    """Does `input_data["do"]`; every start of a task and every message is a line in a file the test names."""

    served = AgentType.CODING

    def __init__(self, agent_id: str, config: ConductorConfig) -> None:
        super().__init__(agent_id, self.served, config)

    async def _validate_task(self, task: TaskDefinition) -> bool:
        return task.input_data.get("do") != "refuse"

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        orders = task.input_data
        _note(orders.get("log"), {"task": task.task_id, "agent": self.agent_id, "pid": os.getpid()})
        if orders.get("do") == "judge":
            return self._create_result(task.task_id, TaskStatus.FAILED, {}, "it is not good")
        output = await getattr(self, f"_do_{orders.get('do', 'echo')}")({**orders, "id": task.task_id})
        return self._create_result(task.task_id, TaskStatus.COMPLETED, output)

    async def handle_message(self, message: AgentMessage) -> AgentMessage | None:
        """Answer QUESTIONs in the payload; note all that comes."""
        orders = message.payload
        _note(orders.get("log"), {"message": message.message_id, "agent": self.agent_id})
        if message.message_type in (MessageType.TASK_ASSIGNMENT, MessageType.CONTROL):
            return await super().handle_message(message)
        if "do" not in orders:
            return None
        answer = await getattr(self, f"_do_{orders['do']}")(orders)
        return message.create_response(self.agent_id, MessageType.FEEDBACK, answer)

    async def _do_echo(self, orders: dict[str, Any]) -> dict[str, Any]:
        return {"echo": orders.get("say"), "pid": os.getpid()}

    async def _do_modules(self, orders: dict[str, Any]) -> dict[str, Any]:
        return {"modules": [name for name in sys.modules if name.startswith(orders["beginning"])]}

    async def _do_sleep(self, orders: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(orders["seconds"])
        return {"slept": orders["seconds"]}

    async def _do_wait_for_file(self, orders: dict[str, Any]) -> dict[str, Any]:
        file = Path(orders["file"])
        # Made by the process of the test: the file, or at the latest when the test has ended, the other one.
        while not file.exists() and not file.with_name(TEST_IS_OVER).exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
        return {"agent": self.agent_id, "pid": os.getpid()}

    async def _do_block(self, orders: dict[str, Any]) -> dict[str, Any]:
        time.sleep(orders["seconds"])  # noqa: ASYNC251 - that is the point
        return {"blocked": orders["seconds"]}

    async def _do_spin(self, orders: dict[str, Any]) -> dict[str, Any]:
        while True:
            pass

    async def _do_ignore_cancelling(self, orders: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def _do_fail(self, orders: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(orders.get("say", "it does not work"))

    async def _do_fail_as_agent(self, orders: dict[str, Any]) -> dict[str, Any]:
        raise AgentError("the agent gives up", self.agent_id, error_code="GIVES_UP")

    async def _do_fail_with(self, orders: dict[str, Any]) -> dict[str, Any]:
        """Fail with a code, so many times if `times` is given, as the log counts them."""
        tried = [note for note in notes(Path(orders["log"])) if note["task"] == orders["id"]]
        if len(tried) <= orders.get("times", 1000):
            raise ConductorError(f"attempt {len(tried)}", orders["code"])
        return {"attempts": len(tried)}

    async def _do_in_turn(self, orders: dict[str, Any]) -> dict[str, Any]:
        """Do another thing with each try, as the log counts them."""
        tried = [note for note in notes(Path(orders["log"])) if note["task"] == orders["id"]]
        outcome: dict[str, Any] = await getattr(self, f"_do_{orders['turns'][len(tried) - 1]}")(orders)
        return outcome

    async def _do_exit(self, orders: dict[str, Any]) -> dict[str, Any]:
        sys.exit(3)

    async def _do_die(self, orders: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


class BreakableAgent(ObedientAgent):
    """The same, of a type that the tests of circuit breakers have for themselves."""

    served = AgentType.DEPLOYING


class MonitorProbe(ObedientAgent):
    """The same, of a type that the test of a thousand tasks has for itself."""

    served = AgentType.MONITOR


class SecondAgent(ObedientAgent):
    """The same, of a type that the tests which kill nodes have for themselves."""

    served = AgentType.REVIEW


class ThirdAgent(ObedientAgent):
    """The same, of a type that the tests of stopping have for themselves."""

    served = AgentType.TEST_DATA


class DevOpsProbe(ObedientAgent):
    """The same, in another phase."""

    served = AgentType.DEVOPS


class UnmakeableAgent(ObedientAgent):
    """Cannot even be constructed."""

    def __init__(self, agent_id: str, config: ConductorConfig) -> None:
        raise RuntimeError("no licence key")


class UnstartableAgent(ObedientAgent):
    """Cannot be started."""

    async def _on_start(self) -> None:
        raise RuntimeError("no licence key")


def _note(path: str | None, line: dict[str, Any]) -> None:
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def notes(path: Path) -> list[dict[str, Any]]:
    """Read what agents noted."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
