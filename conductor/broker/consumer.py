"""The thread that consumes."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from conductor.broker.link_thread import LinkThread
from conductor.broker.wire import Address, Raw, Receiver, missing_right

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds between looks whether a silent broker is still there.
CHECK_INTERVAL = 5.0


class Intake(Protocol):
    """Where the consumer puts what comes."""

    def put(self, chunk: list[Raw], receiver: Receiver) -> bool:
        """Take messages, in the consumer's thread; true when the loop has to call `work`."""

    def work(self) -> None:
        """Handle what was taken; on the loop."""

    def live(self, address: Address) -> None:
        """Note that `address` is subscribed at the broker; on the loop."""

    def lost(self) -> None:
        """Note that nothing is subscribed at the moment; on the loop."""


class Consumer(LinkThread[Receiver]):
    """Keeps the subscriptions it was told of, also over lost connections, and reads without pause."""

    def __init__(
        self,
        name: str,
        url: str,
        open_link: Callable[[Callable[[Address], None]], Receiver],
        intake: Intake,
    ) -> None:
        super().__init__(name, url, lambda: open_link(self._confirm))
        self._intake = intake
        self._wanted: list[Address] = []
        self._changes: deque[tuple[bool, Address]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._waker.settimeout(0)
        self._woken.settimeout(0)

    def add(self, address: Address) -> None:
        """Subscribe; `Intake.live` follows, again after each reconnection. Belongs to the loop."""
        self._changes.append((True, address))
        self._wake()

    def drop(self, address: Address) -> None:
        """Unsubscribe. Belongs to the loop."""
        self._changes.append((False, address))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: it has ended
            self._waker.send(b"!")

    def _confirm(self, address: Address) -> None:
        if address.refusal is not None:
            why = missing_right(address.refusal, address.key)
            logger.warning("%s: the subscription to %s is refused: %s", self.name, address.key, why)
        self._post(self._intake.live, address)

    def _serve(self, link: Receiver) -> None:
        try:
            self._change_wanted()
            for address in self._wanted:
                link.add(address)
            self._read(link)
        finally:
            self._post(self._intake.lost)

    def _read(self, link: Receiver) -> None:
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        poll.register(self._woken.fileno(), select.POLLIN)
        check_at = time.monotonic() + CHECK_INTERVAL
        more = True
        while not self._stopping.is_set():
            wait = 0.0 if more else max(0.0, check_at - time.monotonic())
            ready = [number for number, _ in poll.poll(wait * 1000)]
            if self._woken.fileno() in ready:
                self._apply_changes(link)
            if ready or more:
                chunk = link.receive()
                more = link.more
                if chunk and self._intake.put(chunk, link):
                    self._post(self._intake.work)
            if time.monotonic() >= check_at:
                link.check()
                check_at = time.monotonic() + CHECK_INTERVAL

    def _apply_changes(self, link: Receiver) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        for added, address in self._change_wanted():
            if added:
                link.add(address)
            else:
                link.drop(address)

    def _change_wanted(self) -> list[tuple[bool, Address]]:
        changes = []
        while self._changes:
            added, address = change = self._changes.popleft()
            changes.append(change)
            if added:
                self._wanted.append(address)
            else:
                self._wanted.remove(address)
        return changes

    def _on_end(self) -> None:
        self._waker.close()
        self._woken.close()
