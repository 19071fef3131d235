"""That one engine at a time runs a workflow."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING

from conductor.core.exceptions import StateError, WorkflowError
from conductor.orchestration.workflow_progress import engine_of

if TYPE_CHECKING:
    from conductor.orchestration.state_manager import StateManager

logger = logging.getLogger(__name__)

#: Seconds between two attempts to get a lease that another engine has.
PAUSE = 0.1
#: Seconds for which the wish to cancel a workflow is remembered.
WISH_SECONDS = 7 * 86400.0


class WorkflowLease:
    """The right to run one workflow, for `seconds` after it was renewed last."""

    def __init__(self, state_manager: StateManager, workflow_id: str, seconds: float) -> None:
        self._state_manager = state_manager
        self._workflow_id = workflow_id
        self._name = f"workflow:{workflow_id}"
        self._until = 0.0
        self.seconds = seconds
        self.owner = uuid.uuid4().hex

    async def take(self, patience: float = 0.0) -> None:
        """Get the lease, waiting up to `patience` seconds for it: WorkflowError, code WORKFLOW_RUNNING."""
        deadline = time.monotonic() + patience
        while not await self.try_to_take():
            if time.monotonic() >= deadline:
                raise WorkflowError(
                    f"Workflow {self._workflow_id} is being run by another engine.",
                    self._workflow_id,
                    "WORKFLOW_RUNNING",
                )
            await asyncio.sleep(PAUSE)

    async def try_to_take(self) -> bool:
        """Get the lease if it is free."""
        asked = time.monotonic()
        if not await self._state_manager.acquire_lease(self._name, self.owner, self.seconds):
            return False
        self._until = asked + self.seconds
        return True

    async def hold(self) -> None:
        """Make sure the lease is ours still: WorkflowError, code WORKFLOW_LEASE_LOST.

        Costs nothing while it was renewed in time, which a process that was stopped for a while has not.
        """
        if time.monotonic() >= self._until:
            await self.renew()

    async def renew(self) -> None:
        """Renew the lease, also one that ran out if nobody used it; WORKFLOW_LEASE_LOST otherwise."""
        asked = time.monotonic()
        manager = self._state_manager
        try:
            async with asyncio.timeout(max(self._until - asked, self.seconds / 4)):
                ours = await manager.renew_lease(self._name, self.owner, self.seconds)
                if not ours and await manager.acquire_lease(self._name, self.owner, self.seconds):
                    ours = await self._nobody_else_ran_it()
        except (StateError, TimeoutError) as error:
            if time.monotonic() < self._until:
                logger.warning("workflow %s: its lease was not renewed: %s", self._workflow_id, error)
                return
            raise self._lost() from error
        if not ours:
            raise self._lost()
        self._until = asked + self.seconds

    async def release(self) -> None:
        """Give the lease back; a store that is away lets it run out."""
        try:
            await self._state_manager.release_lease(self._name, self.owner)
        except StateError as error:
            logger.warning("workflow %s: its lease was not given back: %s", self._workflow_id, error)

    async def wish_to_cancel(self) -> None:
        """Ask whoever runs the workflow, now or later, to cancel it."""
        await self._state_manager.acquire_lease(self._wish, "cancel", WISH_SECONDS)

    async def is_to_be_cancelled(self) -> bool:
        """Tell whether somebody asked for that."""
        return await self._state_manager.lease_owner(self._wish) is not None

    async def forget_wish(self) -> None:
        """Ask no longer."""
        await self._state_manager.release_lease(self._wish, "cancel")

    @property
    def _wish(self) -> str:
        return f"cancel-workflow:{self._workflow_id}"

    async def _nobody_else_ran_it(self) -> bool:
        state = await self._state_manager.get_workflow_state(self._workflow_id)
        if state is None or engine_of(state) == self.owner:
            return True
        await self.release()
        return False

    def _lost(self) -> WorkflowError:
        return WorkflowError(
            f"This engine lost workflow {self._workflow_id}: it could not renew its lease in time. What it "
            "dispatched goes on, and so does the run with whoever resumes it.",
            self._workflow_id,
            "WORKFLOW_LEASE_LOST",
        )
