"""What a broker knows: connections, queues, keys."""

import json

import redis

from tests.support import rabbitmq


def connections(url: str) -> set[str]:
    """What the broker calls the connections that there are, without the one that asks."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            own = str(client.client_id())
            return {known["id"] for known in client.client_list()} - {own}
    return rabbitmq.connections(url)


def traces(url: str) -> set[str]:
    """Everything of ours that a broker keeps: keys and PUB/SUB channels, or queues and bindings."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url, decode_responses=True) as client:
            keys = {f"key {key}" for key in client.scan_iter("*kombu*")}
            keys |= {f"key {key}" for key in client.scan_iter("*conductor.*")}
            channels = {f"channel {name}" for name in client.pubsub_channels("*conductor.*")}
            patterns = {f"pattern {number}" for number in range(client.pubsub_numpat())}
            return keys | channels | patterns
    queues = {f"queue {row[0]}" for row in rabbitmq.list_objects("queues", url, "name")}
    bindings = {f"binding {json.dumps(row)}" for row in rabbitmq.list_objects("bindings", url)}
    return queues | bindings
