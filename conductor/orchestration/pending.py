"""The requests of one bus that wait for their answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage

Publish = Callable[[str, AgentMessage], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    message: AgentMessage
    answer: asyncio.Future[AgentMessage]


class PendingRequests:
    """Matches messages with the requests they answer; lives on one event loop."""

    def __init__(self) -> None:
        self._questions: dict[str, list[_Question]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._questions.values()))

    async def ask(
        self, channel: str, message: AgentMessage, timeout: float, publish: Publish
    ) -> AgentMessage:
        """Give `publish` a correlated copy of `message`, and return the first answer to it.

        No answer after `timeout` seconds is a MessageBusError with code REQUEST_TIMEOUT; nothing stays
        behind, however it ends.
        """
        if not isinstance(timeout, int | float) or math.isnan(timeout):
            details = {"timeout": repr(timeout)}
            raise MessageBusError(
                f"timeout must be a number of seconds, not {timeout!r}.", "INVALID_TIMEOUT", details
            )
        correlation_id = message.correlation_id or message.message_id
        copy = message.model_copy(update={"correlation_id": correlation_id})
        question = _Question(copy, asyncio.get_running_loop().create_future())
        self._questions.setdefault(correlation_id, []).append(question)
        try:
            if await _answered(question.answer, asyncio.ensure_future(publish(channel, copy)), timeout):
                return question.answer.result()
        finally:
            self._forget(correlation_id, question)
        raise MessageBusError(
            f"No answer on {channel} within {timeout:g} s.",
            "REQUEST_TIMEOUT",
            {"channel": channel, "correlation_id": correlation_id, "timeout_seconds": timeout},
        )

    def resolve(self, message: AgentMessage) -> bool:
        """Hand `message` to the requests it answers; tell whether there were any."""
        if not self._questions or message.correlation_id is None:
            return False
        answered = [
            question
            for question in self._questions.get(message.correlation_id, ())
            if question.message.message_id != message.message_id
        ]
        for question in answered:
            if not question.answer.done():
                question.answer.set_result(message)
        return bool(answered)

    def fail_all(self) -> None:
        """Fail every waiting request with code BUS_DISCONNECTED."""
        for correlation_id, questions in self._questions.items():
            error = MessageBusError(
                "The bus was disconnected while the request waited for its answer.",
                "BUS_DISCONNECTED",
                {"correlation_id": correlation_id},
            )
            for question in questions:
                if not question.answer.done():
                    question.answer.set_exception(error)

    def _forget(self, correlation_id: str, question: _Question) -> None:
        questions = self._questions[correlation_id]
        questions.remove(question)
        if not questions:
            del self._questions[correlation_id]
        _discard(question.answer)


async def _answered(
    answer: asyncio.Future[AgentMessage], publishing: asyncio.Future[None], timeout: float
) -> bool:
    """Wait for both, but no longer than for `answer`; a failure of `publishing` before it is raised."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    try:
        both: set[asyncio.Future[Any]] = {publishing, answer}
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if publishing.done() and not answer.done():
            publishing.result()
            await asyncio.wait({answer}, timeout=deadline - loop.time())
    finally:
        _discard(publishing)
    return answer.done()


def _discard(future: asyncio.Future[Any]) -> None:
    if not future.cancel() and not future.cancelled():
        future.exception()  # marks it as seen: asyncio logs what nobody looked at
