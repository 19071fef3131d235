"""The exchanges, queues and routing keys: what the broker calls the things we talk about.

`driver` is kombu's `driver_type` of the transport: "redis" or "amqp". On Redis the event and reply exchanges
are fanout exchanges, which kombu carries over PUB/SUB with the routing key in the topic; on RabbitMQ they are
a topic and a direct exchange.

| flow | exchange | routing key | queue |
|---|---|---|---|
| event | conductor.events | the channel, on RabbitMQ translated | one per bus and pattern, dies with it |
| reply | conductor.replies | id of the asking bus, or `REPLY_TO_ANY` | one per asking bus, dies with it |
| event, shared | conductor.events | as above | conductor.group.<group>.<digest of pattern>, durable |
| retry, RabbitMQ | default | name of the queue | that with .retry.<milliseconds>, vanishes unused |
| work | conductor.work, default | name of the queue | conductor.agent.<id>, conductor.type.<type>, durable |
| dead letters | default | name of the queue | conductor.dlq, durable |
"""

from __future__ import annotations

import hashlib
from typing import Any

from kombu import Exchange, Queue

from conductor.core.channels import is_pattern, validate_name
from conductor.core.enums import AgentType
from conductor.core.exceptions import MessageBusError

REDIS, AMQP = "redis", "amqp"

EVENTS = "conductor.events"
REPLIES = "conductor.replies"
WORK = "conductor.work"

#: Every bus that ever asked receives what is published to REPLIES with this routing key.
REPLY_TO_ANY = "any"

#: The queue of dead letters.
DEAD_LETTERS = "conductor.dlq"

#: How the names of the queues of agents begin.
AGENT_QUEUE_PREFIX = "conductor.agent."
_TYPE_QUEUE_PREFIX = "conductor.type."

#: Exists on RabbitMQ while somebody reads or changes the dead letters, and belongs to their connection.
DEAD_LETTERS_LOCK = "conductor.dlq.lock"

#: How the names of the queues of groups begin.
GROUP_QUEUE_PREFIX = "conductor.group."

#: On Redis: a hash of the queues of all groups, each with its pattern; who publishes feeds them by it.
GROUP_REGISTRY = "conductor.groups"

#: Headers of a message in a group's queue: its channel, and what its members made of it so far.
CHANNEL_HEADER = "conductor_channel"
TRIAL_HEADER = "conductor_trial"

#: Header of a request: seconds since the epoch at which its asker stops waiting.
DEADLINE_HEADER = "conductor_deadline"

#: Stands for a "." of a channel in a RabbitMQ routing key; a channel cannot contain it.
_DOT = "\x1f"
_TRANSIENT = 1
#: Milliseconds that a queue of retries outlives the last message put into it.
_RETRY_QUEUE_GRACE = 60_000
_SPECIAL_IN_GLOB = str.maketrans({character: f"\\{character}" for character in "?[]\\"})
_TO_AMQP = str.maketrans({":": ".", ".": _DOT})
_FROM_AMQP = str.maketrans({".": ":", _DOT: "."})


def events_exchange(driver: str) -> Exchange:
    """The exchange of all events."""
    return _volatile_exchange(EVENTS, "fanout" if driver == REDIS else "topic")


def replies_exchange(driver: str) -> Exchange:
    """The exchange of the answers to requests."""
    return _volatile_exchange(REPLIES, "fanout" if driver == REDIS else "direct")


def work_exchange() -> Exchange:
    """The exchange of tasks."""
    return Exchange(WORK, type="direct", durable=True)


def agent_queue(agent_id: str) -> Queue:
    """The queue of the tasks for one agent; a bad id is a MessageBusError with code INVALID_CHANNEL."""
    validate_name(agent_id)
    return _work_queue(f"{AGENT_QUEUE_PREFIX}{agent_id}")


def type_queue(agent_type: AgentType) -> Queue:
    """The queue of the tasks for whichever agent of a type is free first."""
    return _work_queue(f"{_TYPE_QUEUE_PREFIX}{agent_type.value}")


def work_queue(name: str) -> Queue | None:
    """The queue of tasks that has this name; None for any other name."""
    return _work_queue(name) if name.startswith((AGENT_QUEUE_PREFIX, _TYPE_QUEUE_PREFIX)) else None


def durable_queue(name: str) -> Queue | None:
    """The queue of tasks or of dead letters that has this name; None for any other name."""
    return dead_letter_queue() if name == DEAD_LETTERS else work_queue(name)


def agent_of_queue(name: str) -> str | None:
    """Give the agent whose tasks are in the queue of this name; None for any other name."""
    if not name.startswith(AGENT_QUEUE_PREFIX):
        return None
    agent_id = name.removeprefix(AGENT_QUEUE_PREFIX)
    try:
        validate_name(agent_id)
    except MessageBusError:
        return None
    return agent_id


def type_of_queue(name: str) -> AgentType | None:
    """Give the type of agents whose tasks are in the queue of this name; None for any other name."""
    kind = name.removeprefix(_TYPE_QUEUE_PREFIX)
    return AgentType(kind) if kind != name and kind in set(AgentType) else None


def dead_letter_queue() -> Queue:
    """The queue of what nobody could do.

    A classic queue: reading it without taking anything away counts as a delivery to RabbitMQ's others, which
    drop a message that was delivered often.
    """
    return Queue(
        DEAD_LETTERS,
        work_exchange(),
        routing_key=DEAD_LETTERS,
        durable=True,
        queue_arguments={"x-queue-type": "classic"},
    )


def group_queue_name(group: str, pattern: str) -> str:
    """The name of the queue that the members of `group` share for `pattern`.

    A digest stands for the pattern: both as they are would not fit into RabbitMQ's 255 bytes.
    """
    digest = hashlib.sha256(pattern.encode()).hexdigest()[:16]
    return f"{GROUP_QUEUE_PREFIX}{group}.{digest}"


def group_queue(group: str, pattern: str) -> Queue:
    """The queue of a group on RabbitMQ.

    A classic queue: its members count losses by themselves. A quorum queue would, but RabbitMQ counts other
    things in it depending on its version (3.10 also what was given back in good order), and has thrown away
    what was delivered 20 times since 4.0.
    """
    return Queue(
        group_queue_name(group, pattern),
        events_exchange(AMQP),
        routing_key=event_binding_key(AMQP, pattern),
        durable=True,
        queue_arguments={"x-queue-type": "classic"},
    )


def retry_queue(queue: str, milliseconds: int) -> Queue:
    """The queue on RabbitMQ in which messages wait so long, then go back to `queue`; vanishes when unused."""
    arguments: dict[str, Any] = {
        "x-queue-type": "classic",
        "x-message-ttl": milliseconds,
        "x-expires": milliseconds + _RETRY_QUEUE_GRACE,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
    }
    return Queue(f"{queue}.retry.{milliseconds}", durable=True, queue_arguments=arguments)


def event_routing_key(driver: str, channel: str) -> str:
    """The routing key of events on `channel`."""
    return channel if driver == REDIS else channel.translate(_TO_AMQP)


def channel_of(driver: str, routing_key: str) -> str:
    """The channel of events with `routing_key`."""
    return routing_key if driver == REDIS else routing_key.translate(_FROM_AMQP)


def event_binding_key(driver: str, pattern: str) -> str:
    """The binding key of a subscription to `pattern`, a channel or a pattern with "*".

    On RabbitMQ it may let more through than the pattern does: every word with a "*" in it becomes "#", since
    its own "*" is one word only. The receiver has to filter with `conductor.core.channels.matches`.
    """
    if driver == REDIS:
        return pattern.translate(_SPECIAL_IN_GLOB)
    words = pattern.translate(_TO_AMQP).split(".")
    return ".".join("#" if is_pattern(word) else word for word in words)


def needs_filter(driver: str, pattern: str) -> bool:
    """Whether the broker may deliver more to a subscription of `pattern` than it should."""
    return driver == AMQP and ("*" in pattern or "#" in pattern)


def event_queue(driver: str, pattern: str, name: str) -> Queue:
    """The queue of one subscriber's events; it vanishes with the connection that declared it."""
    return _volatile_queue(name, events_exchange(driver), event_binding_key(driver, pattern))


def reply_queue(driver: str, routing_key: str, name: str) -> Queue:
    """A queue of answers that vanishes with the connection that declared it."""
    return _volatile_queue(name, replies_exchange(driver), routing_key)


def _volatile_exchange(name: str, kind: str) -> Exchange:
    return Exchange(name, type=kind, durable=True, delivery_mode=_TRANSIENT)


def _volatile_queue(name: str, exchange: Exchange, binding_key: str) -> Queue:
    return Queue(
        name, exchange, routing_key=binding_key, durable=False, exclusive=True, auto_delete=True, no_ack=True
    )


def _work_queue(name: str) -> Queue:
    # Also where the virtual host's default is another type: a node's prefetch limit is one for all of its
    # queues together, which RabbitMQ's quorum queues do not have. `quorum_transport` declares them as such.
    return Queue(
        name, work_exchange(), routing_key=name, durable=True, queue_arguments={"x-queue-type": "classic"}
    )
