"""Who lacks a right is told which, and where to read what is needed."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager

import pytest
import redis

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.queue_depths import read_queue_depths
from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, MessageType
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition
from conductor.store.embedded import EmbeddedServer
from conductor.store.redis_state import RedisStateManager
from tests.support import rabbitmq
from tests.support.rights import PASSWORD, login
from tests.support.waiting import wait_until

ALL = ["reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"]


class Server:
    """A Valkey with the user `limited`."""

    def __init__(self, url: str) -> None:
        self.admin = redis.Redis.from_url(url)
        self.url = login(url, "limited")

    def allow(self, *rules: str) -> None:
        """Give the user all rights, changed by rules."""
        self.admin.execute_command("ACL SETUSER", "limited", *ALL, *rules)  # type: ignore[no-untyped-call]

    def config(self) -> ConductorConfig:
        return ConductorConfig(broker_url=self.url, redis={"url": self.url})


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with EmbeddedServer(tmp_path_factory.mktemp("limited")) as server:
        yield Server(server.url)


def a_message() -> AgentMessage:
    return AgentMessage(message_type=MessageType.FEEDBACK, sender_id="me")


async def refusal(action: Awaitable[object], code: str, *named: str) -> None:
    """Expect that a right is named at once, not when a limit of time is over."""
    with pytest.raises(ConductorError) as caught:
        await asyncio.wait_for(action, 8)
    assert caught.value.error_code == code, caught.value
    for text in (*named, "docs/security.md"):
        assert text in caught.value.message
    assert PASSWORD not in f"{caught.value!r}{caught.value.to_dict()}"


@asynccontextmanager
async def bus_on(url: str) -> AsyncIterator[KombuMessageBus]:
    async with KombuMessageBus(url, publish_timeout=20) as bus:
        yield bus


async def test_connecting_a_bus(valkey: Server) -> None:
    valkey.allow("-script|load")
    await refusal(KombuMessageBus(valkey.url).connect(), "BROKER_FORBIDDEN", "+script|load")


async def test_publishing(valkey: Server) -> None:
    valkey.allow("resetchannels", "&/0.conductor.events/mine:*", "&/0.conductor.replies/*")
    async with bus_on(valkey.url) as bus:
        await refusal(bus.publish("others:1", a_message()), "BROKER_FORBIDDEN", "the channel 'others:1'")
        await bus.publish("mine:1", a_message())
        valkey.allow("-evalsha")
        await refusal(bus.publish("mine:1", a_message()), "BROKER_FORBIDDEN", "+evalsha")
        valkey.allow()
        await bus.publish("mine:1", a_message())


async def test_subscribing_disturbs_no_other_subscription(valkey: Server) -> None:
    valkey.allow("resetchannels", "&/0.conductor.events/mine:*", "&/0.conductor.replies/*")
    async with bus_on(valkey.url) as bus:
        heard: list[AgentMessage] = []

        async def hear(message: AgentMessage) -> None:
            heard.append(message)

        await bus.subscribe("mine:1", hear)
        for refused in ("others:1", "mine:*2"):
            await refusal(bus.subscribe(refused, hear), "BROKER_FORBIDDEN", f"the channel '{refused}'")
        await bus.publish("mine:1", a_message())
        await wait_until(lambda: heard)
        valkey.allow()
        await bus.subscribe("others:1", hear)


async def test_dispatching(valkey: Server) -> None:
    task = TaskDefinition(name="t", assigned_to=AgentType.CODING)
    valkey.allow("-lpush")
    async with Conductor(valkey.config()) as conductor:
        await refusal(conductor.dispatch(task), "BROKER_FORBIDDEN", "+lpush")
        valkey.allow("resetchannels", "&/*")
        await refusal(conductor.dispatch(task), "STATE_FORBIDDEN", f"'celery-task-meta-{task.task_id}'")
        valkey.allow("-set")
        await refusal(conductor.dispatch(task), "STATE_FORBIDDEN", "+set")
        valkey.allow()
        await conductor.dispatch(task)
        valkey.allow("-lrange")
        await refusal(conductor.dead_letters.list(), "BROKER_FORBIDDEN", "+lrange")
        valkey.allow("-smembers")
        depths = asyncio.to_thread(read_queue_depths, valkey.url)
        await refusal(depths, "BROKER_FORBIDDEN", "+smembers")


async def test_state(valkey: Server) -> None:
    valkey.allow("resetkeys", "~others:*")
    async with RedisStateManager(valkey.url) as state:
        await refusal(state.get_agent_state("a"), "STATE_FORBIDDEN", "the key 'conductor:agent:a'")
        valkey.allow("resetchannels")

        async def watch() -> None:
            async with state.watch_agent_states():
                pass

        await refusal(watch(), "STATE_FORBIDDEN", "the channel 'conductor:changes:agent'")


@asynccontextmanager
async def limited(url: str, configure: str, write: str, read: str) -> AsyncIterator[str]:
    rabbitmq.skip_without_users()
    name = f"limited-{uuid.uuid4().hex[:8]}"
    with rabbitmq.user(name, PASSWORD, url, configure, write, read):
        yield login(url, name)


async def test_a_bus_on_rabbitmq(rabbitmq_url: str) -> None:
    async with limited(rabbitmq_url, "^conductor.bus", ".*", ".*") as url:
        connecting = KombuMessageBus(url).connect()
        await refusal(connecting, "BROKER_FORBIDDEN", "configure exchange 'conductor.events'")
    async with limited(rabbitmq_url, ".*", "^conductor.bus", "^$") as url, bus_on(url) as bus:
        await refusal(bus.publish("c", a_message()), "BROKER_FORBIDDEN", "write exchange 'conductor.events'")

        async def hear(message: AgentMessage) -> None:
            pass

        await refusal(bus.subscribe("c", hear), "BROKER_FORBIDDEN", "read exchange 'conductor.events'")
    async with limited(rabbitmq_url, ".*", ".*", ".*") as url:
        other = url.rpartition("/")[0] + "/%2F"
        await refusal(KombuMessageBus(other).connect(), "BROKER_FORBIDDEN", "virtual host '/'")


async def test_work_and_dead_letters_on_rabbitmq(rabbitmq_url: str, valkey_url: str) -> None:
    rights = r"^conductor\.(events|replies|work)", "^conductor", "^conductor"
    async with limited(rabbitmq_url, *rights) as url:
        config = ConductorConfig(broker_url=url, redis={"url": f"{valkey_url.rpartition('/')[0]}/9"})
        async with Conductor(config) as conductor:
            task = TaskDefinition(name="t", assigned_to=AgentType.CODING)
            await refusal(
                conductor.dispatch(task), "BROKER_FORBIDDEN", "configure queue 'conductor.type.coding'"
            )
            await refusal(
                conductor.dead_letters.list(), "BROKER_FORBIDDEN", "configure queue 'conductor.dlq.lock'"
            )
