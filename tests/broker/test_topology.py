"""Names at the broker."""

import pytest

from conductor.broker import topology
from conductor.broker.topology import AMQP, REDIS
from conductor.core.enums import AgentType
from conductor.core.exceptions import MessageBusError


@pytest.mark.parametrize("driver", [REDIS, AMQP])
@pytest.mark.parametrize("channel", ["conductor:agent:a.b", "plain", "a:b:c", "x.y:z", "ä#:?[]"])
def test_a_channel_survives_its_routing_key(driver: str, channel: str) -> None:
    assert topology.channel_of(driver, topology.event_routing_key(driver, channel)) == channel


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("conductor:agent:x", "conductor.agent.x"),
        ("conductor:workflow:*", "conductor.workflow.#"),
        ("a*b:c", "#.c"),
        ("*", "#"),
        ("a.b:c", "a\x1fb.c"),
    ],
)
def test_binding_keys_of_rabbitmq_let_at_least_the_pattern_through(pattern: str, key: str) -> None:
    assert topology.event_binding_key(AMQP, pattern) == key


def test_in_redis_only_the_star_is_special() -> None:
    assert topology.event_binding_key(REDIS, "a?[b]\\c:*") == "a\\?\\[b\\]\\\\c:*"


def test_work_queues_outlive_everybody_and_event_queues_nobody() -> None:
    for queue in (
        topology.agent_queue("agent-1"),
        topology.type_queue(AgentType.CODING),
    ):
        assert queue.durable
        assert queue.exchange.durable
        assert not queue.auto_delete
        assert queue.routing_key == queue.name
    assert topology.agent_queue("agent-1").name == "conductor.agent.agent-1"
    assert topology.type_queue(AgentType.TEST_DATA).name == "conductor.type.test_data"
    event_queue = topology.event_queue(AMQP, "conductor:broadcast", "some-name")
    assert event_queue.exclusive
    assert event_queue.auto_delete


@pytest.mark.parametrize("agent_id", ["", "a b", "a:b", "x" * 129])
def test_bad_agent_ids_have_no_queue(agent_id: str) -> None:
    with pytest.raises(MessageBusError) as raised:
        topology.agent_queue(agent_id)
    assert raised.value.error_code == "INVALID_CHANNEL"
