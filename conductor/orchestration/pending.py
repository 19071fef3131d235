"""The requests of one bus that wait for their answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from conductor.core.enums import MessageType
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.core.metrics import NO_METRICS, Metrics

Publish = Callable[[str, AgentMessage], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    message: AgentMessage
    answer: asyncio.Future[AgentMessage]


class PendingRequests:
    """Matches messages with the requests they answer; lives on one event loop."""

    def __init__(self, metrics: Metrics = NO_METRICS) -> None:
        self._metrics = metrics
        self._questions: dict[str, list[_Question]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._questions.values()))

    async def ask(
        self, channel: str, message: AgentMessage, timeout: float, publish: Publish
    ) -> AgentMessage:
        """Give `publish` the `message`, which has a correlation id, and return the first answer to it.

        No answer after `timeout` seconds is a MessageBusError with code REQUEST_TIMEOUT; nothing stays
        behind, however it ends.
        """
        if not isinstance(timeout, int | float) or math.isnan(timeout):
            details = {"timeout": repr(timeout)}
            raise MessageBusError(
                f"timeout must be a number of seconds, not {timeout!r}.", "INVALID_TIMEOUT", details
            )
        correlation_id = message.correlation_id or message.message_id
        question = _Question(message, asyncio.get_running_loop().create_future())
        self._questions.setdefault(correlation_id, []).append(question)
        timer = None
        publishing: asyncio.Future[None] | None = None
        began = time.monotonic()
        outcome = "failed"
        try:
            publishing = asyncio.ensure_future(publish(channel, message))
            publishing.add_done_callback(partial(_fail_with, question.answer))
            timer = asyncio.get_running_loop().call_later(timeout, _expire, question, channel, timeout)
            answer = await question.answer
            outcome = "error" if answer.message_type is MessageType.ERROR else "answered"
            return answer
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except MessageBusError as error:
            outcome = "timeout" if error.error_code == "REQUEST_TIMEOUT" else "failed"
            raise
        finally:
            self._metrics.request_ended(outcome, time.monotonic() - began)
            self._forget(correlation_id, question)
            if timer is not None:
                timer.cancel()
            if publishing is not None:
                discard(publishing)

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
        discard(question.answer)


def _fail_with(answer: asyncio.Future[AgentMessage], publishing: asyncio.Future[None]) -> None:
    """Let a request fail as its publishing did."""
    if publishing.cancelled() or answer.done():
        return
    error = publishing.exception()
    if error is not None:
        answer.set_exception(error)


def _expire(question: _Question, channel: str, timeout: float) -> None:
    if not question.answer.done():
        details = {
            "channel": channel,
            "correlation_id": question.message.correlation_id,
            "timeout_seconds": timeout,
        }
        question.answer.set_exception(
            MessageBusError(f"No answer on {channel} within {timeout:g} s.", "REQUEST_TIMEOUT", details)
        )


def discard(future: asyncio.Future[Any]) -> None:
    """Lose interest in a future: cancel it, or else mark its outcome as seen, or asyncio would log it."""
    if not future.cancel() and not future.cancelled():
        future.exception()
