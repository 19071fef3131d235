"""Dead letters made from what Celery really sends."""

import json
import uuid
from datetime import timedelta
from typing import Any

import redis

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.app import create_app
from conductor.broker.dead_letters import encode_body, letter_of, publish_dead_letter
from conductor.broker.node_intake import HANDLE_MESSAGE
from conductor.broker.tasks import EXECUTE_TASK
from conductor.broker.transport import kombu_connection
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter, DeadLetterReason
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage
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
    facts = {"task_id": task.task_id, "task_name": task.name} | fields
    keywords = {"run": f"first-{task.task_id}"}
    celery = (task.task_id, EXECUTE_TASK, task.model_dump(mode="json"), keywords)
    return _celery_letter(addresses, celery, agent_id, age, facts)


def request_letter(addresses: Addresses, request: AgentMessage, agent_id: str) -> DeadLetter:
    """The same of a request to an agent."""
    keywords = {"agent_id": agent_id, "reply_to": None, "run": request.message_id}
    celery = (request.message_id, HANDLE_MESSAGE, request.model_dump(mode="json"), keywords)
    return _celery_letter(addresses, celery, agent_id, 0, {"message_id": request.message_id})


def _celery_letter(
    addresses: Addresses,
    celery: tuple[str, str, dict[str, Any], dict[str, Any]],
    agent_id: str,
    age: float,
    facts: dict[str, Any],
) -> DeadLetter:
    app = create_app(
        ConductorConfig(broker_url=addresses.broker_url, redis={"url": addresses.redis_url}),
        addresses=addresses,
        set_as_current=False,
    )
    task_id, name, argument, keywords = celery
    message = app.amqp.as_task_v2(
        task_id, name, (argument,), keywords, retries=2, countdown=1000, expires=2000, time_limit=60
    )
    # A queue that no node listens to: it is the test that takes the message.
    queue = topology.agent_queue(f"aside-{uuid.uuid4().hex}")
    with kombu_connection(addresses.broker_url, confirm_publish=True) as connection:
        app.amqp.send_task_message(app.amqp.Producer(connection), name, message, queue=queue)
        [received] = take_all(addresses.broker_url, queue.name)
        queue(connection.default_channel).delete()
    app.close()
    body, encoding = encode_body(received.body)
    properties = {**received.properties, "content_type": received.content_type}
    properties.pop("application_headers", None)
    sent = {"body": body, "body_encoding": encoding, "headers": dict(received.headers)}
    place = {"agent_id": agent_id, "queue": topology.agent_queue(agent_id).name, "properties": properties}
    return a_letter(age, **(sent | place | facts))


def put(url: str, *letters: DeadLetter) -> None:
    """Put letters into the queue of dead letters, the first one first, as surely as their senders do."""
    with kombu_connection(url, confirm_publish=True) as connection:
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


def ids(letters: list[DeadLetter]) -> list[str]:
    """The ids of letters."""
    return [letter.letter_id for letter in letters]


def a_task() -> TaskDefinition:
    """A task with text that is no ASCII."""
    return TaskDefinition(name="a task", input_data={"text": "grüße"})


def an_agent() -> str:
    """An id that no agent has."""
    return f"nobody-{uuid.uuid4().hex}"


def record_of(records: redis.Redis, task_id: str | None) -> dict[str, object] | None:
    """Celery's record of a task."""
    raw = records.get(f"celery-task-meta-{task_id}")
    return None if raw is None else json.loads(raw)


def set_record(records: redis.Redis, task_id: str | None, status: str, run: str) -> None:
    """File a task under a status."""
    record = {"status": status, "task_id": task_id, "kwargs": {"run": run}, "result": None}
    records.set(f"celery-task-meta-{task_id}", json.dumps(record), ex=60)


def many_letters(addresses: Addresses, agent: str, number: int) -> list[DeadLetter]:
    """The letters of so many tasks for an agent."""
    template, letters = task_letter(addresses, a_task(), agent), []
    for task_id in (f"{agent}-{count}" for count in range(number)):
        headers = {**template.headers, "id": task_id}
        changes = {"letter_id": f"letter-{task_id}", "task_id": task_id, "headers": headers}
        letters.append(template.model_copy(update=changes))
    return letters


def filed_letters(url: str, message_id: str | None = None) -> list[DeadLetter]:
    """The dead letters, or those of one message; all of them stay in the queue."""
    letters = []
    with kombu_connection(url) as connection:
        channel = connection.default_channel
        queue = topology.dead_letter_queue()(channel)
        queue.declare()
        # Queue.get would raise for originals that were refused as they are.
        while (found := channel.basic_get(queue.name)) is not None:
            letters.append(letter_of(found.body, found.headers))
        channel.close()
    return [letter for letter in letters if message_id in (None, letter.message_id)]
