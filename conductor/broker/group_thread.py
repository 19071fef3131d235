"""The thread that serves the members of groups."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from conductor.broker.dead_letters import encode_body
from conductor.broker.group_link import Delivery, GroupLink, Member, printable
from conductor.broker.link_thread import LinkThread
from conductor.broker.plain_message import DAMAGE
from conductor.broker.signing import SignatureError
from conductor.broker.task_letters import headers_as_json
from conductor.core.channels import compile_pattern
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.exceptions import MessageBusError
from conductor.core.message_size import bytes_in, check_size
from conductor.core.messages import AgentMessage
from conductor.orchestration.groups import dead_letter, too_many_losses, verdict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from conductor.broker.signing import Signer
    from conductor.core.retry import RetryPolicy
    from conductor.orchestration.groups import Trial

logger = logging.getLogger(__name__)

Job = tuple["Callable[[GroupLink], None]", "asyncio.Future[None]"]


class Office(Protocol):
    """What the thread tells the event loop, on which all of this is called."""

    def begin(self, delivery: Delivery) -> None:
        """Have the member's callback called; `GroupThread.report` is to follow."""

    def expired(self) -> None:
        """Take note of a message that was too late."""

    def buried(self, letter: DeadLetter) -> None:
        """Take note of a dead letter."""


class GroupThread(LinkThread[GroupLink]):
    """Takes messages for members, and carries out what becomes of them; see `LinkThread`."""

    def __init__(
        self,
        name: str,
        url: str,
        open_link: Callable[[], GroupLink],
        office: Office,
        policy: RetryPolicy,
        max_losses: int,
        max_message_bytes: int,
        signer: Signer | None,
    ) -> None:
        super().__init__(name, url, open_link)
        self._office = office
        self._policy = policy
        self._max_losses = max_losses
        self._max_message_bytes = max_message_bytes
        self._signer = signer
        self._members: list[Member] = []
        self._jobs: deque[Job] = deque()
        self._reports: deque[tuple[Delivery, BaseException | None]] = deque()
        self._held: list[Delivery] = []
        self._fresh: deque[Delivery] = deque()
        """Those of `_held` that nothing was decided about."""
        self._survived: dict[str, bool] = {}
        """What a lost connection took back, by identity; true once its callback returned nevertheless."""
        self._waker, self._woken = socket.socketpair()
        self._waker.settimeout(0)
        self._woken.settimeout(0)

    def admit(self, member: Member) -> asyncio.Future[None]:
        """Have a member served; done when the group gets what is published. Belongs to the loop."""

        def job(link: GroupLink) -> None:
            link.join(member)
            self._members.append(member)

        return self._call(job)

    def dismiss(self, member: Member) -> asyncio.Future[None]:
        """Serve a member no more; what it has it may finish. Belongs to the loop."""
        member.left = True

        def job(link: GroupLink) -> None:
            if member in self._members:
                self._members.remove(member)
                link.leave(member)

        return self._call(job)

    def delete(self, queue: str) -> asyncio.Future[None]:
        """Delete the queue of a group. Belongs to the loop."""
        return self._call(lambda link: link.delete(queue))

    def report(self, delivery: Delivery, error: BaseException | None) -> None:
        """Say how a callback ended; None: it returned. Belongs to the loop."""
        self._reports.append((delivery, error))
        self._wake()

    def _call(self, job: Callable[[GroupLink], None]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._jobs.append((job, future))
        self._wake()
        return future

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: it has ended
            self._waker.send(b"!")

    def _serve(self, link: GroupLink) -> None:
        if self._held and not link.keeps_deliveries:
            # With nothing held, the connection before was lost too early to tell what became of the rest.
            self._survived = {delivery.identity: False for delivery in self._held}
            self._held.clear()
            self._fresh.clear()
        for member in self._members:
            link.join(member)
        while True:
            self._handle_reports(link)
            if self._stopping.is_set():
                self._give_all_back(link)
                return
            self._run_jobs(link)
            for delivery in link.receive():
                self._held.append(delivery)
                self._fresh.append(delivery)
            while self._fresh:
                self._accept(link, self._fresh[0])
                self._fresh.popleft()
            self._wait(link, link.tend())

    def _wait(self, link: GroupLink, seconds: float) -> None:
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        poll.register(self._woken.fileno(), select.POLLIN)
        ready = [number for number, _ in poll.poll(seconds * 1000)]
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                while self._woken.recv(4096):
                    pass

    def _run_jobs(self, link: GroupLink) -> None:
        while self._jobs:
            job, future = self._jobs[0]
            if not future.cancelled():
                job(link)  # if the connection is lost in the middle, the next one does it again
                self._post(_settle, future)
            self._jobs.popleft()

    def _handle_reports(self, link: GroupLink) -> None:
        while self._reports:
            delivery, error = self._reports[0]
            if delivery in self._held:
                self._conclude(link, delivery, error)
                self._held.remove(delivery)
            elif error is None:
                self._conclude_in_vain(link, delivery)
            self._reports.popleft()

    def _conclude_in_vain(self, link: GroupLink, delivery: Delivery) -> None:
        """Note that a message was handled which a lost connection has put back into its queue."""
        logger.warning(
            "Message %s of %s was handled, but could not be acknowledged: the connection was lost. "
            "It may be handled again.",
            delivery.identity,
            delivery.member.queue,
        )
        if delivery.identity in self._survived:
            self._survived[delivery.identity] = True
        if link.seen is not None:
            link.seen.finish(delivery)

    def _accept(self, link: GroupLink, delivery: Delivery) -> None:
        """Hand a delivery to the loop, unless there is nothing to be done with it."""
        member = delivery.member
        if delivery.published and not compile_pattern(member.pattern)(delivery.channel or ""):
            self._drop(link, delivery)
            return
        try:
            check_size("A message", bytes_in(delivery.body), self._max_message_bytes)
            delivery.check_readable()
            genuine = self._signer is None or self._is_genuine(link, delivery, self._signer)
            delivery.message = AgentMessage.model_validate_json(delivery.body)
        except MessageBusError as error:
            self._bury(link, delivery, error, DeadLetterReason.REFUSED, delivery.trial)
            return
        except DAMAGE as error:
            self._bury(link, delivery, error, DeadLetterReason.UNDECODABLE, delivery.trial)
            return
        if not genuine:
            self._drop(link, delivery)
        elif delivery.message.is_expired():
            self._post(self._office.expired)
            _forget(link, delivery)
            self._drop(link, delivery)
        elif member.left:
            self._release_nonce(link, delivery)
            link.give_back(delivery, delivery.trial)
            self._held.remove(delivery)
        elif self._survived.get(delivery.identity) or (link.seen and link.seen.is_repetition(delivery)):
            self._drop(link, delivery)
        elif not delivery.lost or self._outlives_loss(link, delivery):
            self._post(self._office.begin, delivery)

    def _is_genuine(self, link: GroupLink, delivery: Delivery, signer: Signer) -> bool:
        """Whether a message may be handled; False for one that was, of whose end the broker did not hear.

        SignatureError for what is refused.
        """
        try:
            delivery.nonce = signer.verify(delivery.signed(replayed=False))
        except SignatureError as error:
            if error.error_code != "MESSAGE_ALTERED":
                raise
            delivery.nonce = signer.verify(delivery.signed(replayed=True))
        if self._take_nonce(link, delivery):
            return True
        if delivery.lost:
            return False
        # That of another message, which may not have ended.
        delivery.nonce = None
        raise SignatureError("The message was sent once more after it was handled.", "MESSAGE_REPLAYED")

    def _outlives_loss(self, link: GroupLink, delivery: Delivery) -> bool:
        if self._survived.pop(delivery.identity, None) is not None:
            # This very process had it, and lives.
            delivery.trial = delivery.trial.given_back()
            return True
        trial = delivery.trial.lost()
        if trial.losses >= self._max_losses:
            self._bury(link, delivery, _error_of_losses(delivery, trial), DeadLetterReason.WORKER_LOST, trial)
            return False
        self._release_nonce(link, delivery)
        if link.note(delivery, trial):
            self._take_nonce(link, delivery)
            delivery.trial = trial
            return True
        self._held.remove(delivery)
        return False

    def _conclude(self, link: GroupLink, delivery: Delivery, error: BaseException | None) -> None:
        if error is None:
            if link.seen is not None:
                link.seen.finish(delivery)
            link.done(delivery)
            self._settle_nonce(link, delivery)
            return
        trial = delivery.trial.failed()
        reason = verdict(error, trial, self._policy)
        if reason is None:
            self._release_nonce(link, delivery)
            link.later(delivery, trial, self._policy.calculate_delay(trial.failures - 1))
            return
        self._file(link, delivery, dead_letter(error, reason, trial, delivery.message, **_facts(delivery)))

    def _bury(
        self, link: GroupLink, delivery: Delivery, error: Exception, reason: DeadLetterReason, trial: Trial
    ) -> None:
        letter = dead_letter(error, reason, trial, delivery.message, **_facts(delivery))
        self._file(link, delivery, letter)
        self._held.remove(delivery)

    def _file(self, link: GroupLink, delivery: Delivery, letter: DeadLetter) -> None:
        _forget(link, delivery)
        link.bury(delivery, letter)
        self._settle_nonce(link, delivery)
        logger.error(
            "Message %s of %s is a dead letter: %s",
            letter.message_id or delivery.identity,
            letter.queue,
            letter.error_message[:500],
        )
        self._post(self._office.buried, letter)

    def _take_nonce(self, link: GroupLink, delivery: Delivery) -> bool:
        if self._signer is None or delivery.nonce is None or link.seen is None:
            return True
        return link.seen.take_nonce(delivery, self._signer.nonce_seconds)

    def _release_nonce(self, link: GroupLink, delivery: Delivery) -> None:
        """Before a message goes back: who takes it next has the same one, and nobody has died."""
        if delivery.nonce is not None and link.seen is not None:
            link.seen.release_nonce(delivery)

    def _settle_nonce(self, link: GroupLink, delivery: Delivery) -> None:
        if self._signer is not None and delivery.nonce is not None and link.seen is not None:
            link.seen.settle_nonce(delivery, self._signer.nonce_seconds)

    def _drop(self, link: GroupLink, delivery: Delivery) -> None:
        link.done(delivery)
        self._settle_nonce(link, delivery)
        self._held.remove(delivery)

    def _give_all_back(self, link: GroupLink) -> None:
        # Members leave first, else what they give back is delivered to them once more.
        while self._members:
            link.leave(self._members[0])
            self._members.pop(0)
        self._held += link.receive()
        while self._held:
            delivery = self._held[0]
            self._release_nonce(link, delivery)
            link.give_back(delivery, delivery.trial.given_back())
            self._held.pop(0)

    def _on_end(self) -> None:
        self._waker.close()
        self._woken.close()
        self._post(self._fail_jobs)

    def _fail_jobs(self) -> None:
        for _, future in self._jobs:
            if not future.done():
                future.set_exception(MessageBusError("The bus was disconnected.", "BUS_DISCONNECTED"))
        self._jobs.clear()


def _error_of_losses(delivery: Delivery, trial: Trial) -> Exception:
    message = delivery.message
    return too_many_losses(delivery.identity if message is None else message.message_id, trial)


def _forget(link: GroupLink, delivery: Delivery) -> None:
    if link.seen is not None:
        link.seen.forget(delivery)


def _facts(delivery: Delivery) -> dict[str, Any]:
    body, encoding = encode_body(delivery.body)
    return {
        "channel": delivery.channel,
        "queue": delivery.member.queue,
        "body": body,
        "body_encoding": encoding,
        "headers": headers_as_json(delivery.original_headers()),
        "properties": printable(delivery.properties),
    }


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
