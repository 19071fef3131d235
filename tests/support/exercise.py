"""All that goes over a broker, on one that works and on one that refuses."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from conductor.broker import topology
from conductor.broker.addresses import Addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.overview import look_around
from conductor.client import Conductor
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType, MessageType, TaskStatus
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.models import TaskDefinition
from conductor.store.redis_state import RedisStateManager
from tests.support.buses import Inbox, a_message, unique
from tests.support.consuming import consuming
from tests.support.consuming import put as put_tasks
from tests.support.letters import a_letter, put
from tests.support.nodes import Farm, run_celery
from tests.support.waiting import wait_until


async def bus_works(bus: KombuMessageBus) -> None:
    """Subscribe, publish more than fits into one TLS record, and ask."""
    channel, inbox, shared = unique("works"), Inbox(), Inbox()

    async def answer(message: AgentMessage) -> None:
        await bus.publish("conductor:response", message.create_response("r", MessageType.FEEDBACK))

    await bus.subscribe(f"{channel}*", inbox)
    await bus.subscribe(channel, shared, group="all")
    await bus.subscribe(f"{channel}:ask", answer)
    for number in range(50):
        await bus.publish(channel, a_message(number, payload={"number": number, "text": "x" * 20_000}))
    await inbox.has(*range(50))
    await wait_until(lambda: sorted(shared.numbers) == list(range(50)))
    await bus.request(f"{channel}:ask", a_message(1), timeout=10)


async def dead_letters_work(url: str) -> None:
    """Put a letter in, look at it and replay it."""
    queue, letter = DeadLetterQueue(ConductorConfig(), url, None), a_letter()
    put(url, letter)
    assert await queue.list() == [letter]
    assert (await queue.replay(all=True)).replayed == [letter.letter_id]
    assert await queue.count() == 0


def nodes_take_tasks(url: str) -> None:
    """Take what was there before, and what comes while nothing is there."""
    queue = topology.agent_queue(uuid.uuid4().hex)
    put_tasks(url, queue, "first")
    with consuming(url) as consumer:
        consumer.consume(queue, ack=True)
        consumer.until(lambda: len(consumer.messages) == 1)
        consumer.turn()
        put_tasks(url, queue, "x" * 50_000)
        consumer.until(lambda: len(consumer.messages) == 2)


async def a_node_works(farm: Farm) -> None:
    """Have a node do a task, see its record as Celery does, and look at the node with Celery's commands."""
    node = farm.start("ObedientAgent")
    farm.setup(node)
    async with Conductor(farm.config) as conductor:
        order = TaskDefinition(name="echo", assigned_to=AgentType.CODING, input_data={"say": "hello"})
        handle = await conductor.dispatch(order, node.agent_id)
        result = await handle.result(20)
    assert (result.status, result.output_data["echo"]) == (TaskStatus.COMPLETED, "hello")
    assert await asyncio.to_thread(lambda: farm.app.AsyncResult(order.task_id).state) == "SUCCESS"
    looked = await asyncio.to_thread(run_celery, "inspect", "ping", environment=farm.environment())
    assert "pong" in looked.stdout, looked.stdout + looked.stderr


async def refusals(addresses: Addresses) -> list[str]:
    """What everything that connects to the broker says of it; each has to be an error of ours."""
    config = ConductorConfig()
    bus, letters = KombuMessageBus(addresses.broker_url), DeadLetterQueue(config, addresses.broker_url, None)
    overview = await look_around(config, addresses)
    assert overview.broker.error is not None
    return [await refusal(bus.connect), await refusal(letters.count), overview.broker.error]


async def state_refusal(url: str) -> str:
    """What the state manager says of its server."""
    return await refusal(RedisStateManager(url).connect)


async def refusal(connect: Callable[[], Awaitable[object]]) -> str:
    """The message of the error of ours that this raises."""
    try:
        await connect()
    except ConductorError as error:
        return error.message
    raise AssertionError("it was accepted")
