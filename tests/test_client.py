"""`Conductor` itself: servers, connecting, and what it says when something is missing."""

import asyncio
import json
from pathlib import Path

import pytest
import redis.asyncio as redis

import conductor
from conductor import Conductor, ConductorConfig, ConductorError, MessageBusError, StateError, TaskDefinition
from conductor.broker import result_listener
from conductor.core.enums import AgentType
from conductor.core.fields import utc_now
from conductor.core.messages import AgentMessage
from conductor.core.state import AgentState
from conductor.store.embedded import EmbeddedServer
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until


def config(folder: Path, **settings: object) -> ConductorConfig:
    return ConductorConfig(data_dir=folder / "data", **settings)


def some_task() -> TaskDefinition:
    return TaskDefinition(name="a task", assigned_to=AgentType.CODING)


async def test_with_nothing_configured_it_has_a_server_of_its_own_for_its_lifetime(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Conductor(settings) as ours:
        url = EmbeddedServer.running(settings.data_dir)
        assert ours.addresses.broker_url == ours.addresses.redis_url == url
        heard: list[AgentMessage] = []

        async def hear(message: AgentMessage) -> None:
            heard.append(message)

        await ours.bus.subscribe("conductor:test", hear)
        await ours.bus.publish("conductor:test", AgentMessage(message_type="feedback", sender_id="a-test"))
        await wait_until(lambda: heard)
        assert await ours.state.list_agent_states() == []
    assert EmbeddedServer.running(settings.data_dir) is None


async def test_it_uses_the_embedded_server_that_runs_and_leaves_it_running(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with EmbeddedServer(settings.data_dir) as server:
        async with Conductor(settings) as first, Conductor(settings) as second:
            assert first.addresses.redis_url == second.addresses.redis_url == server.url
        assert EmbeddedServer.running(settings.data_dir) == server.url


async def test_two_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    first, second = Conductor(config(tmp_path)), Conductor(config(tmp_path))
    await asyncio.gather(first.connect(), second.connect())
    assert first.addresses == second.addresses
    await first.disconnect()
    await second.disconnect()


async def test_before_connecting_everything_says_so(tmp_path: Path) -> None:
    ours = Conductor(config(tmp_path))
    assert ours.config.data_dir == tmp_path / "data"
    for use in (
        lambda: ours.bus,
        lambda: ours.state,
        lambda: ours.addresses,
        lambda: ours.dead_letters,
    ):
        with pytest.raises(ConductorError) as caught:
            use()
        assert caught.value.error_code == "NOT_CONNECTED"
    with pytest.raises(ConductorError) as caught:
        await ours.dispatch(some_task())
    assert caught.value.error_code == "NOT_CONNECTED"
    await ours.disconnect()


async def test_what_the_configuration_lets_expire_does(valkey_url: str, tmp_path: Path) -> None:
    prefix = f"{tmp_path.name}:"
    settings = {"url": valkey_url, "key_prefix": prefix, "agent_expires_seconds": 60}
    async with (
        Conductor(config(tmp_path, redis=settings)) as ours,
        redis.Redis.from_url(valkey_url) as client,
    ):
        await ours.state.save_agent_state(AgentState(agent_id="a", agent_type=AgentType.CODING))
        assert 0 < await client.ttl(f"{prefix}agent:a") <= 60


async def test_connecting_twice_and_disconnecting_twice_are_no_errors(
    valkey_url: str, tmp_path: Path
) -> None:
    ours = Conductor(config(tmp_path, broker_url=valkey_url))
    for _ in range(2):
        await ours.connect()
    for _ in range(2):
        await ours.disconnect()


@pytest.mark.parametrize("name", ["broker_url", "redis"])
async def test_a_server_that_is_not_there_is_named(valkey_url: str, tmp_path: Path, name: str) -> None:
    nobody = "redis://:secret@127.0.0.1:1/0"
    urls = {"broker_url": valkey_url, "redis": {"url": valkey_url}}
    urls[name] = nobody if name == "broker_url" else {"url": nobody}
    with pytest.raises((MessageBusError, StateError)) as caught:
        await Conductor(config(tmp_path, **urls, bus={"connect_timeout": 0.5})).connect()
    assert "127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_task_for_a_broker_that_went_away_is_an_error_in_time(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "broker") as broker, EmbeddedServer(tmp_path / "redis") as store:
        settings = config(
            tmp_path, broker_url=broker.url, redis={"url": store.url}, bus={"publish_timeout": 1.0}
        )
        async with Conductor(settings) as ours:
            handle = await ours.dispatch(some_task())
            await handle.cancel()
            await handle.result(10)
            broker.stop()
            order = some_task()
            with pytest.raises(MessageBusError) as caught:
                await ours.dispatch(order)
            assert caught.value.error_code == "BROKER_UNAVAILABLE"
            with pytest.raises(ConductorError) as unknown:
                await ours.handle(order.task_id)
            assert unknown.value.error_code == "TASK_NOT_FOUND"


@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
async def test_a_broker_that_falls_silent_holds_nobody_up(
    valkey_url: str, tmp_path: Path, broker: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{broker}_url")
    async with Proxy(url) as proxy, asyncio.timeout(60):
        settings = config(
            tmp_path,
            broker_url=proxy.url,
            redis={"url": valkey_url},
            bus={"publish_timeout": 1.0, "connect_timeout": 1.0},
        )
        async with Conductor(settings) as ours:
            started = await ours.dispatch(some_task(), "nobody-at-all")
            client = redis.Redis.from_url(valkey_url)
            record = json.loads(await client.get(f"celery-task-meta-{started.task_id}"))
            await client.set(
                f"celery-task-meta-{started.task_id}", json.dumps({**record, "status": "STARTED"})
            )
            await client.aclose()
            proxy.fall_silent()
            for call in (ours.dispatch(some_task(), "nobody-at-all"), started.cancel()):
                with pytest.raises(MessageBusError) as caught:
                    await call
                assert caught.value.error_code == "BROKER_UNAVAILABLE"


async def test_a_result_is_not_missed_that_was_written_while_the_connection_was_cut(
    valkey_url: str, tmp_path: Path
) -> None:
    async with Proxy(valkey_url) as proxy:
        settings = config(tmp_path, broker_url=valkey_url, redis={"url": proxy.url})
        async with Conductor(settings) as ours, redis.Redis.from_url(valkey_url) as client:
            handle = await ours.dispatch(some_task(), "nobody-at-all")
            waiting = asyncio.ensure_future(handle.result(20))
            await proxy.stop()
            await client.set(f"celery-task-meta-{handle.task_id}", _record(handle.task_id))
            await proxy.start()
            assert (await waiting).error_message == "ValueError: it is over"


async def test_a_result_is_not_missed_that_is_written_while_the_connection_is_made_again(
    valkey_url: str, tmp_path: Path
) -> None:
    async with Proxy(valkey_url) as proxy:
        settings = config(tmp_path, broker_url=valkey_url, redis={"url": proxy.url})
        async with Conductor(settings) as ours, redis.Redis.from_url(valkey_url) as client:
            handle = await ours.dispatch(some_task(), "nobody-at-all")
            waiting = asyncio.ensure_future(handle.result(20))
            await proxy.stop()
            proxy.hold(b"SUBSCRIBE")
            await proxy.start()
            await proxy.holds.wait()
            # Long enough for what is read before the subscription is there.
            await ours.state.list_agent_states()
            key, record = f"celery-task-meta-{handle.task_id}", _record(handle.task_id)
            await client.set(key, record)
            await client.publish(key, record)
            proxy.release()
            assert (await waiting).error_message == "ValueError: it is over"


async def test_a_connection_that_is_cut_while_it_is_tested_is_made_again_at_once(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(valkey_url) as proxy:
        settings = config(tmp_path, broker_url=valkey_url, redis={"url": proxy.url})
        monkeypatch.setattr(result_listener, "SILENCE", 1.0)
        async with Conductor(settings) as ours:
            await asyncio.sleep(0)  # From here on it is silent.
            monkeypatch.setattr(result_listener, "SILENCE", 1000.0)
            proxy.hold(b"PING")
            await proxy.holds.wait()
            await proxy.stop()
            proxy.release()
            await proxy.start()
            handle = await ours.dispatch(some_task(), "nobody-at-all")
            await handle.cancel()


async def test_what_waits_for_a_result_ends_when_the_conductor_does(valkey_url: str, tmp_path: Path) -> None:
    async with Conductor(config(tmp_path, broker_url=valkey_url)) as ours:
        handle = await ours.dispatch(some_task(), "nobody-at-all")
        waiting = asyncio.ensure_future(handle.result())
        await asyncio.sleep(0)
    with pytest.raises(ConductorError) as caught:
        await waiting
    assert caught.value.error_code == "NOT_CONNECTED"


def test_every_public_name_is_there() -> None:
    for name in conductor.__all__:
        assert getattr(conductor, name).__name__ == name
    assert "Conductor" in dir(conductor)
    with pytest.raises(AttributeError):
        conductor.nothing_of_that_name  # noqa: B018


async def test_no_thread_is_left_behind(valkey_url: str, tmp_path: Path) -> None:
    import threading

    before = set(threading.enumerate())
    async with Conductor(config(tmp_path, broker_url=valkey_url)) as ours:
        await ours.dispatch(some_task(), "nobody-at-all")
    left = [
        thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio_")
    ]
    assert left == []


def _record(task_id: str) -> str:
    import json

    error = {"exc_type": "ValueError", "exc_message": ["it is over"], "exc_module": "builtins"}
    return json.dumps({"status": "FAILURE", "result": error, "traceback": None, "task_id": task_id})


async def test_waiting_in_vain_says_whose_agent_is_missing(valkey_url: str, tmp_path: Path) -> None:
    prefix = f"{tmp_path.name}:"
    settings = config(tmp_path, redis={"url": valkey_url, "key_prefix": prefix})
    async with Conductor(settings) as ours:
        by_type = await ours.dispatch(some_task())
        by_id = await ours.dispatch(some_task(), "nobody-1")
        for handle, said in ((by_type, "No agent of type coding is running: start one with 'conductor up "
                              "--agents coding'"), (by_id, "No agent 'nobody-1' is running")):  # fmt: skip
            with pytest.raises(ConductorError) as caught:
                await handle.result(0.01)
            assert caught.value.error_code == "TASK_TIMEOUT"
            assert said in str(caught.value)
        there = AgentState(agent_id="c", agent_type=AgentType.CODING, last_heartbeat=utc_now())
        await ours.state.save_agent_state(there)
        with pytest.raises(ConductorError) as caught:
            await by_type.result(0.01)
        assert str(caught.value).endswith("it is pending and goes on.")
        await by_type.cancel()
        await by_id.cancel()
