"""What an agent has at hand while it does a task."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING

from conductor.agents.progress import ProgressReports
from conductor.agents.task_log import TaskLog
from conductor.core.log_ids import bound_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conductor.agents.base import BaseAgent
    from conductor.agents.services import Bus, State
    from conductor.core.config import ConductorConfig
    from conductor.core.models import TaskDefinition


class TaskContext:
    """One run of one task by one agent; belongs to the agent's event loop, `log` to every thread."""

    def __init__(self, agent: BaseAgent, task: TaskDefinition, logger: logging.Logger | None = None) -> None:
        self.agent = agent
        self.task = task
        self.log = TaskLog(logger or logging.getLogger(type(agent).__module__), agent.agent_id, task)

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.task.task_id

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self.agent.agent_id

    @property
    def config(self) -> ConductorConfig:
        """The configuration of the agent's host."""
        return self.agent.config

    @property
    def bus(self) -> Bus:
        """The host's message bus; AgentError, code NOT_HOSTED, for an agent that nobody hosts."""
        return self.agent.bus

    @property
    def state(self) -> State:
        """The host's state manager; AgentError, code NOT_HOSTED, for an agent that nobody hosts."""
        return self.agent.state_manager

    async def progress(self, percent: float, message: str | None = None) -> None:
        """Tell who listens to the task or its workflow how far it is, from 0 to 100, and what is being done.

        May be called as often as one likes: ten reports a second are published, and always the last one. It
        does not wait for the broker, and an agent that nobody hosts tells nobody. ConductorError, code
        INVALID_PROGRESS, for other values.
        """
        await self._reports.report(percent, message)

    @cached_property
    def _reports(self) -> ProgressReports:
        bus = self.agent.bus if self.agent.is_hosted else None
        return ProgressReports(bus, self.agent_id, self.task, self.log)

    async def _finish(self) -> None:
        if "_reports" in vars(self):
            await self._reports.finish()


_current: ContextVar[TaskContext | None] = ContextVar("conductor_task_context", default=None)


def context_of(agent: BaseAgent, task: TaskDefinition) -> TaskContext | None:
    """Find the context of a run of `task` by `agent` in which the caller is."""
    context = _current.get()
    return context if context and context.agent is agent and context.task_id == task.task_id else None


@asynccontextmanager
async def entered(context: TaskContext) -> AsyncIterator[None]:
    """Be in a run: `context_of` finds it, log lines have its ids, and its progress is complete at the end."""
    token = _current.set(context)
    try:
        with bound_ids(context.log.ids):
            try:
                yield
            finally:
                await context._finish()  # noqa: SLF001 - the run's end is nothing for the agent to call
    finally:
        _current.reset(token)
