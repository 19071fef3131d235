"""Putting dead letters into their queue, from any thread."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from conductor.broker.dead_letters import announcement, publish_dead_letter
from conductor.broker.results import UNKNOWN_AGENT
from conductor.broker.signing import seals_of
from conductor.broker.task_sender import broker_unavailable
from conductor.broker.topology import EVENTS
from conductor.broker.transport import connect, disconnect, kombu_connection
from conductor.broker.wire import Outgoing, open_sender, seal
from conductor.core.channels import DLQ
from conductor.core.log_ids import IDS, bound_ids
from conductor.core.metrics import NO_METRICS, Metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kombu import Connection, Producer

    from conductor.broker.signing import Signer
    from conductor.broker.wire import Sender
    from conductor.core.dead_letters import DeadLetter

logger = logging.getLogger(__name__)

#: Seconds that the broker may be silent.
IO_TIMEOUT = 5.0


class DeadLetterSender:
    """Sends letters over one connection, made at the first; blocks, and may be called from any thread."""

    def __init__(
        self,
        broker_url: str,
        connect_timeout: float,
        patience: float,
        metrics: Metrics = NO_METRICS,
        signer: Signer | None = None,
    ) -> None:
        """`patience` is how many seconds a letter waits for a broker that is away."""
        self._seals = seals_of(signer)
        self._url = broker_url
        self._connect_timeout = connect_timeout
        self._patience = patience
        self._metrics = metrics
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._events: Sender | None = None

    def send(self, letter: DeadLetter) -> None:
        """Return when the broker has the letter, and everybody who listens was told of it.

        MessageBusError, code BROKER_UNAVAILABLE; the letter may have arrived nevertheless.
        """
        ids = _ids_of(letter)
        with bound_ids(ids):
            with self._lock:
                self._put(letter)
                self._metrics.dead_letter(letter.reason.value)
                # One about a message on the channel of letters would come and fail there again.
                if letter.channel != DLQ:
                    self._announce(letter)
            logger.warning(
                "Dead letter %s (%s): %s, %s: %s",
                letter.letter_id,
                letter.reason,
                _subject(letter, ids),
                letter.error_code,
                letter.error_message,
            )

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _put(self, letter: DeadLetter) -> None:
        for attempt in (1, 2):
            try:
                publish_dead_letter(self._open(), letter)
            except Exception as error:
                connection = self._connection
                lost = connection is None or isinstance(error, connection.recoverable_connection_errors)
                self._drop()
                if attempt == 2 or not lost:
                    raise broker_unavailable(error, self._url, "keep a dead letter") from error
            else:
                return

    def _announce(self, letter: DeadLetter) -> None:
        """Tell `conductor:dlq`; the letter is safe already, so that a failure is only logged."""
        try:
            message = announcement(letter)
            body = message.model_dump_json().encode()
            out = Outgoing(EVENTS, DLQ, body, tag=message.message_id)
            seal(out, self._seals)
            self._open_events().send([out])
        except Exception:
            logger.exception("Dead letter %s was not announced on %s", letter.letter_id, DLQ)
            self._drop()

    def _open_events(self) -> Sender:
        """The way of events, which on Redis feeds the groups that listen too."""
        if self._events is None:
            limit = self._connect_timeout
            connection = kombu_connection(self._url, connect_timeout=limit, io_timeout=min(IO_TIMEOUT, limit))
            self._events = open_sender(connection, self._url)
        return self._events

    def _open(self) -> Producer:
        if self._producer is None:
            limit = self._connect_timeout
            connection = kombu_connection(
                self._url, connect_timeout=limit, io_timeout=min(IO_TIMEOUT, limit), confirm_publish=True
            )
            self._connection = connection
            connect(connection, self._patience)
            self._producer = connection.Producer()
        return self._producer

    def _drop(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            events.close()
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            disconnect(connection)


def _ids_of(letter: DeadLetter) -> dict[str, str | None]:
    """Give what is known: a letter about no task has an id of its own in place of the task's."""
    unknown = (letter.letter_id, UNKNOWN_AGENT, "")
    found = {name: getattr(letter, name) for name in IDS}
    return {name: None if value in unknown else value for name, value in found.items()}


def _subject(letter: DeadLetter, ids: Mapping[str, str | None]) -> str:
    about = next(
        (f"{word} {ids[f'{word}_id']}" for word in ("task", "message") if ids[f"{word}_id"]), "a message"
    )
    agent_id = ids["agent_id"]
    return f"{about} of agent {agent_id}" if agent_id else f"{about} on {letter.channel or letter.queue}"
