"""How much waits in queues, on both brokers, with nothing taken."""

import uuid

import pytest
from kombu import Queue

from conductor import AgentType, MessageBusError
from conductor.broker import topology
from conductor.broker.queue_depths import QueueDepth, read_queue_depths
from conductor.broker.transport import kombu_connection


def send(url: str, queue: Queue, count: int) -> None:
    with kombu_connection(url) as connection:
        bound = queue(connection.default_channel)
        bound.declare()
        for number in range(count):
            connection.Producer().publish({"n": number}, routing_key=queue.name, exchange="")


@pytest.fixture(params=["valkey_url", "rabbitmq_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_it_counts_what_waits_and_takes_nothing(url: str) -> None:
    agent_id = f"deep-{uuid.uuid4().hex}"
    send(url, topology.agent_queue(agent_id), 3)
    for _ in range(2):
        found = {
            queue.name: queue for queue in read_queue_depths(url, [agent_id, "never-seen", "not a name"])
        }
        queue = found[f"conductor.agent.{agent_id}"]
        assert (queue.ready, queue.agent_id, queue.agent_type) == (3, agent_id, None)
        assert "conductor.agent.never-seen" not in found
    assert sorted(found) == list(found)


def test_queues_of_types_and_of_dead_letters_are_known_by_themselves(url: str) -> None:
    before = {queue.name: queue.ready for queue in read_queue_depths(url)}
    send(url, topology.type_queue(AgentType.DEVOPS), 2)
    send(url, topology.dead_letter_queue(), 1)
    after = {queue.name: queue for queue in read_queue_depths(url)}
    of_type = after["conductor.type.devops"]
    assert of_type.ready == before.get(of_type.name, 0) + 2
    assert (of_type.agent_type, of_type.agent_id) == (AgentType.DEVOPS, None)
    letters = after["conductor.dlq"]
    assert letters.ready == before.get(letters.name, 0) + 1
    assert (letters.agent_type, letters.agent_id) == (None, None)


def test_redis_tells_of_agents_that_nobody_asked_for(valkey_url: str) -> None:
    agent_id = f"unasked-{uuid.uuid4().hex}"
    send(valkey_url, topology.agent_queue(agent_id), 1)
    assert QueueDepth(f"conductor.agent.{agent_id}", 1) in read_queue_depths(valkey_url)


def test_rabbitmq_tells_of_consumers(rabbitmq_url: str) -> None:
    queue = topology.agent_queue(f"heard-{uuid.uuid4().hex}")
    with kombu_connection(rabbitmq_url) as connection:
        bound = queue(connection.default_channel)
        bound.declare()
        bound.consume("consumer", callback=print)
        [found] = [q for q in read_queue_depths(rabbitmq_url, [queue.name.rpartition(".")[2]]) if q.agent_id]
    assert (found.ready, found.consumers) == (0, 1)


@pytest.mark.parametrize("gone", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"])
def test_a_broker_that_is_away_is_an_error(gone: str) -> None:
    with pytest.raises(MessageBusError) as caught:
        read_queue_depths(gone, timeout=1)
    assert caught.value.error_code == "BROKER_UNAVAILABLE"
    assert "look at its queues" in caught.value.message
