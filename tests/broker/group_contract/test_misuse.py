"""What groups refuse, for every implementation."""

from typing import Any

import pytest

from conductor.core.exceptions import MessageBusError
from conductor.orchestration.message_bus import MessageBus
from tests.broker.group_contract.conftest import GroupBusMaker
from tests.support.buses import Inbox, unique


@pytest.mark.parametrize("name", ["", "two words", "a:b", "a*", "x" * 129, 7])
async def test_a_bad_group_name_is_refused(bus: MessageBus, name: Any) -> None:
    for refused in (
        bus.subscribe(unique("bad"), Inbox(), group=name),
        bus.delete_group(unique("bad"), name),
    ):
        with pytest.raises(MessageBusError) as caught:
            await refused
        assert caught.value.error_code == "INVALID_GROUP"


@pytest.mark.parametrize("window", [0, -1, float("nan"), float("inf"), True, "60", 10**12])
async def test_a_bad_window_is_refused(bus: MessageBus, group: str, window: Any) -> None:
    with pytest.raises(MessageBusError) as caught:
        await bus.subscribe(unique("bad"), Inbox(), group=group, deduplicate=window)
    assert caught.value.error_code == "INVALID_DEDUPLICATION"
    assert repr(window) in caught.value.message


async def test_a_window_without_a_group_is_refused(bus: MessageBus) -> None:
    with pytest.raises(MessageBusError) as caught:
        await bus.subscribe(unique("alone"), Inbox(), deduplicate=60)
    assert caught.value.error_code == "INVALID_DEDUPLICATION"


async def test_groups_need_a_connected_bus(make_bus: GroupBusMaker, group: str) -> None:
    bus = make_bus()
    for refused in (bus.subscribe("any", Inbox(), group=group), bus.delete_group("any", group)):
        with pytest.raises(MessageBusError) as caught:
            await refused
        assert caught.value.error_code == "BUS_NOT_CONNECTED"
