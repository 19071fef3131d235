"""A RabbitMQ: what its user may do, and how long it waits for acknowledgements."""

from __future__ import annotations

import contextlib
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AccessRefused, AMQPError, NotFound, PreconditionFailed

from conductor.broker.amqp_transport import WrongQueueTypeError
from conductor.broker.topology import AGENT_QUEUE_PREFIX, EVENTS, agent_queue, type_queue
from conductor.cli.doctor.findings import Finding, cannot_check, ok, problem, warning
from conductor.core.enums import AgentType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kombu import Connection

    from conductor.core.config import ConductorConfig

OLDEST = (3, 10)
#: Seconds: what docs/delivery.md asks of `consumer_timeout`, and its default.
SHORTEST_CONSUMER_TIMEOUT, DEFAULT_CONSUMER_TIMEOUT = 60.0, 1800.0


def check_rabbitmq(connection: Connection, config: ConductorConfig) -> list[Finding]:
    """Check a server that is connected; leaves nothing behind."""
    return [_version(connection), _rights(connection), _waiting(config)]


def check_queue_types(connection: Connection, agent_ids: Iterable[str]) -> Finding:
    """Look for queues of tasks that are there as another type than the URL of `connection` asks for."""
    names = [type_queue(kind) for kind in AgentType] + [agent_queue(agent_id) for agent_id in agent_ids]
    wrong = [error for queue in names if (error := _wrong_type(connection, queue))]
    if not wrong:
        return ok("queue types", "Queues of tasks are of the type that the broker's URL asks for.")
    more = f" So are {len(wrong) - 1} more." if len(wrong) > 1 else ""
    meaning, _, advice = str(wrong[0]).partition(": ")
    return problem("queue types", f"{meaning}.{more}", f"{advice[:1].upper()}{advice[1:]}")


def _wrong_type(connection: Connection, queue: Any) -> WrongQueueTypeError | None:
    channel = connection.channel()
    try:
        channel.queue_declare(queue.name, passive=True)
        queue(channel).queue_declare()  # which makes none: it is there
    except WrongQueueTypeError as error:
        return error
    except (NotFound, AccessRefused):
        return None
    channel.close()
    return None


def _version(connection: Connection) -> Finding:
    properties = connection.connection.server_properties
    text = str(properties.get("version", "0"))
    told = f"{properties.get('product', 'an unknown server')} {text}"
    if tuple(int(part) for part in text.split(".")[:2] if part.isdigit()) < OLDEST:
        meaning = f"It is {told}, older than what Conductor was tried on."
        return warning("RabbitMQ version", meaning, "Use RabbitMQ 3.10 or newer.")
    return ok("RabbitMQ version", f"{told}.")


def _rights(connection: Connection) -> Finding:
    user, vhost = connection.userid, connection.virtual_host
    missing = list(_missing_rights(connection))
    if not missing:
        return ok(
            "RabbitMQ permissions", f"{user} may configure, write and read in {vhost!r} what a node needs."
        )
    return problem(
        "RabbitMQ permissions",
        f"{user} lacks in virtual host {vhost!r}: {', '.join(missing)}.",
        "If nodes use it, give it what docs/security.md lists: rabbitmqctl set_permissions "
        f"-p {vhost} {user} CONFIGURE WRITE READ",
    )


def _missing_rights(connection: Connection) -> Iterator[str]:
    """Try what buses and nodes do, with a queue that goes with the connection; nothing is ever sent."""
    mark = f"doctor-{uuid.uuid4().hex}"
    queue, pidbox = f"{AGENT_QUEUE_PREFIX}{mark}", f"{mark}@host.conductor.pidbox.pidbox"
    yield from _missing(connection, f"configure on queue {pidbox!r}", lambda c: _declare(c, pidbox))
    refused = list(_missing(connection, f"configure on queue {queue!r}", lambda c: _declare(c, queue)))
    yield from refused
    with _some_exchange(connection, mark) as (exchange, lacking):
        yield from lacking
        if exchange and not refused:
            yield from _missing(
                connection,
                f"write on queue {queue!r} or read on exchange {exchange!r}",
                lambda c: c.queue_bind(queue, exchange, routing_key=mark),
            )
            yield from _missing(
                connection, f"read on queue {queue!r}", lambda c: c.basic_get(queue, no_ack=True)
            )
        for name in filter(None, (exchange, "amq.default")):
            publish = partial(_try_to_publish, exchange=name, mark=mark)
            yield from _missing(connection, f"write on exchange {name!r}", publish)


def _missing(connection: Connection, right: str, act: Callable[[Any], object]) -> Iterator[str]:
    channel = connection.channel()
    try:
        act(channel)
    except AccessRefused:
        yield right
    finally:
        with contextlib.suppress(AMQPError):
            channel.close()


def _declare(channel: Any, queue: str) -> None:
    channel.queue_declare(queue, durable=False, exclusive=True, auto_delete=True)


@contextlib.contextmanager
def _some_exchange(connection: Connection, mark: str) -> Iterator[tuple[str, list[str]]]:
    """Give the exchange of events where it exists, else one that is deleted afterwards; '' where refused."""
    try:
        connection.channel().exchange_declare(EVENTS, "topic", passive=True)
    except NotFound:
        name, durable = f"conductor.{mark}", False
    else:
        name, durable = EVENTS, True

    def declare(channel: Any) -> None:
        channel.exchange_declare(name, "topic", durable=durable, auto_delete=not durable)

    lacking = list(_missing(connection, f"configure on exchange {name!r}", declare))
    try:
        yield "" if lacking and not durable else name, lacking
    finally:
        if not durable and not lacking:
            connection.channel().exchange_delete(name)


def _try_to_publish(channel: Any, exchange: str, mark: str) -> None:
    """Have RabbitMQ look at the right and then refuse the message, for the user it claims to be from."""
    message = channel.prepare_message("", content_encoding="utf-8", properties={"user_id": mark})
    channel.basic_publish(message, exchange="" if exchange == "amq.default" else exchange, routing_key=mark)
    with contextlib.suppress(PreconditionFailed):
        channel.basic_qos(0, 1, a_global=False)


def _waiting(config: ConductorConfig) -> Finding:
    kept = config.work.visibility_timeout + config.work.touch_interval
    seen = "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).' shows it in milliseconds"
    if kept >= DEFAULT_CONSUMER_TIMEOUT:
        how = problem
    elif kept >= SHORTEST_CONSUMER_TIMEOUT:
        how = warning
    else:
        return cannot_check(
            "consumer timeout",
            f"RabbitMQ tells nobody its consumer_timeout, after which it delivers a task again; it has to be "
            f"{SHORTEST_CONSUMER_TIMEOUT:g} s or more ({DEFAULT_CONSUMER_TIMEOUT:g} s is the default).",
            f"If somebody has set it, look: {seen}.",
        )
    return how(
        "consumer timeout",
        f"A node has RabbitMQ wait for a task only after {kept:g} s (work.visibility_timeout and "
        f"touch_interval); its consumer_timeout, by default {DEFAULT_CONSUMER_TIMEOUT:g} s, must be longer.",
        f"Set work.visibility_timeout to a few seconds, such as 15; {seen}.",
    )
