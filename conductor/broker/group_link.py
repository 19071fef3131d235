"""What the thread of the groups asks of a broker, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field, TypeAdapter

from conductor.broker.amqp_transport import UNREADABLE
from conductor.broker.dead_letters import ROUTING_HEADERS
from conductor.broker.signing import Signed, event_place
from conductor.broker.topology import CHANNEL_HEADER, TRIAL_HEADER
from conductor.core.fields import UtcDatetime
from conductor.orchestration.groups import Trial

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from conductor.broker.group_seen import SeenMessages
    from conductor.core.dead_letters import DeadLetter
    from conductor.core.messages import AgentMessage
    from conductor.orchestration.message_bus import Callback

_TIME: TypeAdapter[datetime | None] = TypeAdapter(UtcDatetime | None)
#: What fits into a header of RabbitMQ's.
_COUNT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(strict=True, ge=0, lt=2**31)])


@dataclass(slots=True, eq=False)
class Member:
    """One callback in a group; it has at most one delivery at a time."""

    group: str
    pattern: str
    queue: str
    callback: Callback
    window: float | None
    """Seconds in which a repeated message id is suppressed."""
    tag: str
    turn: asyncio.Lock
    """Held on the event loop while the callback runs."""
    left: bool = False


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that a member has to handle, as it came from the queue."""

    member: Member
    receipt: Any
    """By which the link knows it."""
    body: bytes | str
    headers: dict[str, Any]
    properties: dict[str, Any]
    identity: str
    """The same for all deliveries of one published message, whatever its id."""
    channel: str | None
    published: bool
    """Whether it came as an event, and not by being put into the queue."""
    lost: bool
    """Whether the member that had it before died or lost its connection."""
    trial: Trial = field(init=False)
    message: AgentMessage | None = None
    nonce: str | None = None
    """That of its signature, once that was checked."""
    claim: str = ""
    """What its nonce is noted with while it is handled."""

    def __post_init__(self) -> None:
        channel = self.headers.get(CHANNEL_HEADER)
        if isinstance(channel, str):
            self.channel = channel
        self.trial = _trial_of(self.headers.get(TRIAL_HEADER))

    def check_readable(self) -> None:
        """Raise ValueError for a message of whose properties there are none because nobody can read them."""
        if UNREADABLE in self.headers:
            raise ValueError(f"The properties of the message cannot be read: {self.headers[UNREADABLE]}")

    def signed(self, *, replayed: bool) -> Signed:
        """Give what its signature is about, of what was published or of what was replayed."""
        return Signed(
            self.member.queue if replayed else event_place(self.channel or ""),
            self.body,
            self.headers,
            reply_to=str(self.properties.get("reply_to") or ""),
            correlation_id=str(self.properties.get("correlation_id") or ""),
        )

    def headers_for(self, trial: Trial) -> dict[str, Any]:
        """Give the headers with which the message goes back to the queue."""
        known = {
            "failures": trial.failures,
            "losses": trial.losses,
            "first_failed_at": trial.first_failed_at.isoformat() if trial.first_failed_at else "",
            "returned": trial.returned,
        }
        return self.original_headers() | {TRIAL_HEADER: known}

    def original_headers(self) -> dict[str, Any]:
        """Give the headers of the message as a dead letter keeps them: its trials begin anew."""
        own = {name: value for name, value in self.headers.items() if name not in _BROKERS_OWN}
        return own if self.channel is None else own | {CHANNEL_HEADER: self.channel}


_BROKERS_OWN = (
    TRIAL_HEADER,
    *ROUTING_HEADERS,
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
)


class GroupLink(Protocol):
    """A connection that serves members; used by one thread. Raises whatever says that it is lost."""

    #: Whether what was delivered stays the member's when the connection is lost.
    keeps_deliveries: bool
    #: Where repetitions are noted; None where there is no such place.
    seen: SeenMessages | None

    def fileno(self) -> int:
        """The socket to wait for."""

    def join(self, member: Member) -> None:
        """Return when the queue of the group gets what is published; deliver to the member from then on."""

    def leave(self, member: Member) -> None:
        """Deliver nothing more to the member."""

    def receive(self) -> Iterable[Delivery]:
        """Take what there is for members, without waiting; what it gave stays given if it raises later."""

    def tend(self) -> float:
        """Do what is due; the seconds after which to call it and `receive` again if the socket is silent."""

    def done(self, delivery: Delivery) -> None:
        """Remove a message from its queue."""

    def later(self, delivery: Delivery, trial: Trial, seconds: float) -> None:
        """Put a message back, to be delivered after so many seconds."""

    def give_back(self, delivery: Delivery, trial: Trial) -> None:
        """Put a message back, to be delivered at once."""

    def note(self, delivery: Delivery, trial: Trial) -> bool:
        """Keep `trial` beside a message; false when it will be delivered once more and with that."""

    def bury(self, delivery: Delivery, letter: DeadLetter) -> None:
        """Put a dead letter into its queue and remove the message."""

    def delete(self, queue: str) -> None:
        """Delete the queue of a group and all it holds."""

    def close(self) -> None:
        """Close the connection; never raises."""


def _trial_of(known: object) -> Trial:
    if not isinstance(known, dict):
        return Trial()
    try:
        return Trial(
            failures=_COUNT.validate_python(known["failures"]),
            losses=_COUNT.validate_python(known["losses"]),
            first_failed_at=_TIME.validate_python(known["first_failed_at"] or None),
            returned=bool(known["returned"]),
        )
    except (KeyError, ValueError, OverflowError):
        # Somebody else's header: the message is as good as new.
        return Trial()


def printable(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Give those properties of a message that a dead letter keeps."""
    kept = ("content_type", "correlation_id", "reply_to", "message_id")
    return {name: properties[name] for name in kept if properties.get(name) is not None}
