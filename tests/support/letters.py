"""Dead letters made from what Celery really sends."""

import uuid
from datetime import timedelta
from typing import Any

from kombu import Connection

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.app import create_app
from conductor.broker.dead_letters import encode_body, publish_dead_letter
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.transport import kombu_connection
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.fields import utc_now
from conductor.core.models import TaskDefinition


def a_letter(age: float = 0, **fields: Any) -> DeadLetter:
    """A letter that failed last so many seconds ago."""
    failed_at = utc_now() - timedelta(seconds=age)
    given = {
        "reason": DeadLetterReason.REJECTED,
        "queue": f"conductor.agent.nobody-{uuid.uuid4().hex}",
        "body": '["an event"]',
        "first_failed_at": failed_at,
        "last_failed_at": failed_at,
    }
    return DeadLetter(**(given | fields))


def task_letter(
    addresses: Addresses, task: TaskDefinition, agent_id: str, age: float = 0, **fields: Any
) -> DeadLetter:
    """The letter of a task as a node makes it of what it received, here after two retries and an ETA."""
    app = create_app(
        ConductorConfig(broker_url=addresses.broker_url, redis={"url": addresses.redis_url}),
        addresses=addresses,
        set_as_current=False,
    )
    message = app.amqp.as_task_v2(
        task.task_id,
        EXECUTE_TASK,
        args=(task.model_dump(mode="json"),),
        kwargs={"run": f"first-{task.task_id}"},
        retries=2,
        countdown=1000,
        expires=2000,
        time_limit=60,
    )
    # A queue that no node listens to: it is the test that takes the message.
    queue = topology.agent_queue(f"aside-{uuid.uuid4().hex}")
    with kombu_connection(addresses.broker_url) as connection:
        app.amqp.send_task_message(app.amqp.Producer(connection), EXECUTE_TASK, message, queue=queue)
        received = take(connection, queue.name)
        queue(connection.default_channel).delete()
    body, encoding = encode_body(received.body)
    properties = {**received.properties, "content_type": received.content_type}
    properties.pop("application_headers", None)
    return a_letter(
        age,
        **{
            "task_id": task.task_id,
            "task_name": task.name,
            "agent_id": agent_id,
            "queue": topology.agent_queue(agent_id).name,
            "body": body,
            "body_encoding": encoding,
            "headers": dict(received.headers),
            "properties": properties,
            **fields,
        },
    )


def put(url: str, *letters: DeadLetter) -> None:
    """Put letters into the queue of dead letters, the first one first."""
    with kombu_connection(url) as connection:
        producer = connection.Producer()
        for letter in letters:
            publish_dead_letter(producer, letter)


def put_raw(url: str, body: Any, headers: dict[str, Any] | None = None) -> None:
    """Put a message into the queue of dead letters that is none."""
    queue = topology.dead_letter_queue()
    with kombu_connection(url) as connection:
        connection.Producer().publish(
            body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], headers=headers
        )


def take(connection: Connection, queue: str) -> Any:
    """Take the next message of a queue."""
    message = connection.default_channel.basic_get(queue)
    assert message is not None, f"nothing is in {queue}"
    python = connection.default_channel.message_to_python(message)
    python.ack()
    return python


def take_all(url: str, queue: str) -> list[Any]:
    """Take all messages of a queue that exists."""
    found = []
    with kombu_connection(url) as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(queue)) is not None:
            python = channel.message_to_python(message)
            python.ack()
            found.append(python)
    return found


def empty(url: str) -> None:
    """Begin with no dead letter."""
    with kombu_connection(url) as connection:
        queue = topology.dead_letter_queue()(connection.default_channel)
        queue.declare()
        queue.purge()
