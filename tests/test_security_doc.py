"""Each role does its work with the rights that docs/security.md lists, and nothing that is another role's."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from conductor.broker.addresses import Addresses
from conductor.broker.transport import kombu_connection
from conductor.broker.wire import missing_right
from conductor.client import Conductor
from conductor.core.enums import AgentType, MessageType
from conductor.core.exceptions import ConductorError
from conductor.core.messages import AgentMessage
from conductor.core.state import AgentState, WorkflowState
from conductor.store.embedded import EmbeddedServer
from tests.support import rabbitmq
from tests.support.client_role import work_of_client
from tests.support.looking_roles import work_of_inspector, work_of_operator, work_of_top, work_of_watcher
from tests.support.observed import Observed
from tests.support.rights import PASSWORD, commands, login, rights_on
from tests.support.roles import CLIENT, INSPECTOR, NODE, OPERATOR, ROLES, WATCHER, Place, nodes_of, order

#: redis-py does without the first; the others are for tidying up when a list has something that is gone.
DONE_WITHOUT = {*((role, "client|setinfo") for role in ROLES), (WATCHER, "exists"), (INSPECTOR, "exists")}


@pytest.fixture(params=["valkey", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    rights, on_rabbitmq = rights_on(), request.param == "rabbitmq"
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedServer(tmp_path / "valkey"))
        observed = stack.enter_context(Observed(store.url))
        if on_rabbitmq:
            rabbitmq.skip_without_users()
            broker, mark = stack.enter_context(rabbitmq.virtual_host()), uuid.uuid4().hex[:8]
        place = Place(tmp_path, {}, {}, observed)
        for role in ROLES:
            rules = rights.store[role] + ([] if on_rabbitmq else rights.broker[role])
            place.rules[role] = rules
            observed.admin.execute_command("ACL SETUSER", role, *rules)  # type: ignore[no-untyped-call]
            url = login(observed.door(role), role)
            if on_rabbitmq:
                user = f"{role}-{mark}"
                stack.enter_context(rabbitmq.user(user, PASSWORD, broker, *rights.rabbitmq[role]))
                place.servers[role] = Addresses(login(broker, user), url)
            else:
                place.servers[role] = Addresses(url, url)
        yield place


def test_each_role_does_its_work_with_its_rights_and_needs_them_all(place: Place) -> None:
    with nodes_of(place) as nodes:
        left = asyncio.run(work_of_client(place, nodes))
        work_of_watcher(place, left)
        asyncio.run(work_of_top(place))
        work_of_inspector(place, left)
        work_of_operator(place, left)
    assert set(place.observed.denied()) <= DONE_WITHOUT
    place.observed.read_all()
    needless = {role: commands(place.rules[role]) - place.observed.used[role] for role in ROLES}
    assert needless == {role: set() for role in ROLES}
    asyncio.run(nobody_does_the_work_of_another(place))
    doctor_finds_the_rights_of_a_node(place)


async def nobody_does_the_work_of_another(place: Place) -> None:
    async def dispatch(conductor: Conductor) -> None:
        await conductor.dispatch(order("echo"))

    async def publish(conductor: Conductor) -> None:
        await conductor.bus.publish("c", AgentMessage(message_type=MessageType.FEEDBACK, sender_id="me"))

    async def read_letters(conductor: Conductor) -> None:
        await conductor.dead_letters.list()

    async def save_workflow(conductor: Conductor) -> None:
        await conductor.state.save_workflow_state(WorkflowState(workflow_id="w"))

    async def save_agent(conductor: Conductor) -> None:
        await conductor.state.save_agent_state(AgentState(agent_id="a", agent_type=AgentType.CODING))

    refused = {
        NODE: (read_letters, save_workflow),
        CLIENT: (read_letters,),
        WATCHER: (dispatch, publish, save_workflow, save_agent),
        INSPECTOR: (dispatch, publish, read_letters, save_workflow, save_agent),
        OPERATOR: (dispatch, publish, save_workflow, save_agent),
    }
    for role, actions in refused.items():
        for action in actions:
            with pytest.raises(ConductorError) as caught:
                async with Conductor(place.config(role)) as conductor:
                    await action(conductor)
            assert caught.value.error_code in ("BROKER_FORBIDDEN", "STATE_FORBIDDEN"), (role, action)
        if role != NODE:
            assert missing_right(await asyncio.to_thread(take_task, place.servers[role].broker_url)), role


def take_task(url: str) -> BaseException | None:
    with kombu_connection(url) as connection:
        try:
            connection.default_channel.basic_get("conductor.type.devops")
        except (*connection.connection_errors, *connection.channel_errors) as error:
            refusal: BaseException = error
            return refusal
    return None


def doctor_finds_the_rights_of_a_node(place: Place) -> None:
    found = place.json(NODE, "doctor", code=None)["findings"]
    levels = {one["check"]: one["level"] for one in found}
    assert levels.get("RabbitMQ permissions", "ok") == "ok", found
