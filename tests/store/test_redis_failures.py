"""What the Redis state manager says, and does, when the server is wrong, full, refusing or away."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from conductor.core.exceptions import StateError
from conductor.store.embedded import EmbeddedServer
from conductor.store.failures import ReplyError
from conductor.store.redis_state import RedisStateManager
from tests.store.makers import agent, result
from tests.support.ports import free_port
from tests.support.waiting import wait_until

SECRET = "s3cret-p@ss"


def send(client: redis.Redis, *command: str) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


async def failure(action: Awaitable[object]) -> StateError:
    with pytest.raises(StateError) as caught:
        await asyncio.wait_for(action, 20)
    shown = f"{caught.value.to_dict()!r}{caught.value!r}{caught.value.__cause__!r}"
    assert "s3cret" not in shown
    return caught.value


async def connecting(url: str) -> StateError:
    return await failure(RedisStateManager(url, connect_timeout=1).connect())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://localhost:port",
        "redis://localhost:99999999",
        "redis://localhost/db",
        "redis://localhost/-1",
        "redis://localhost?socket_timeout=x",
        "unix://",
        "rediss://localhost?ssl_cert_reqs=maybe",
        "rediss://localhost?ssl_ca_certs=/nowhere.pem",
        f"redis:/:{SECRET}@localhost",
        f"ftp://:{SECRET}@localhost",
        None,
        5,
    ],
)
async def test_a_wrong_url_is_refused_with_an_example(url: str) -> None:
    async def make() -> None:
        async with RedisStateManager(url):
            pass

    error = await failure(make())
    assert error.error_code == "STATE_BAD_URL"
    assert "redis://localhost:6379/0" in error.message


async def test_a_database_there_is_not_is_a_wrong_url(redis_url: str) -> None:
    error = await connecting(redis_url.rsplit("/", 1)[0] + "/4711")
    assert error.error_code == "STATE_BAD_URL"


@pytest.mark.parametrize("where", ["127.0.0.1:{port}", "no-such-host.invalid:{port}"])
async def test_a_server_that_is_not_there(where: str) -> None:
    error = await connecting(f"redis://:{SECRET}@{where.format(port=free_port())}/0")
    assert error.error_code == "STATE_UNAVAILABLE"
    assert "Is it running" in error.message


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    assert (await connecting(f"unix://{tmp_path}/nothing.sock")).error_code == "STATE_UNAVAILABLE"


@asynccontextmanager
async def server_that_says(reply: bytes | None) -> AsyncIterator[str]:
    """A TCP server that answers everything with reply, None: that is silent, b"": that hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000) and reply != b"":
            writer.write(reply or b"")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
async def test_what_is_not_a_redis_server(reply: bytes | None) -> None:
    async with server_that_says(reply) as url:
        assert (await connecting(url)).error_code == "STATE_UNAVAILABLE"


async def test_passwords(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, settings={"requirepass": SECRET}) as server:
        for wrong in ("", ":s3cret-wrong@", "user:s3cret-wrong@"):
            url = server.url.replace(server.url[8 : server.url.index("127")], wrong)
            error = await connecting(url)
            assert error.error_code == "STATE_AUTH_FAILED", url
            assert "password" in error.message
        async with RedisStateManager(server.url) as state:
            await state.save_agent_state(agent("a"))
            assert "s3cret" not in repr(state)


async def test_a_user_without_the_right_is_told_so(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        acl = ["on", f">{SECRET}", "~*", "&*", "+@all", "-evalsha"]
        send(redis.Redis.from_url(server.url), "ACL", "SETUSER", "limited", *acl)
        url = server.url.replace("redis://", f"redis://limited:{SECRET.replace('@', '%40')}@")
        async with RedisStateManager(url) as state:
            error = await failure(state.save_agent_state(agent("a")))
        assert error.error_code == "STATE_FORBIDDEN"
        assert "may not run the command 'evalsha': grant it +evalsha, see docs/security.md" in error.message


async def test_a_full_server_says_so_keeps_what_it_has_and_lets_delete(tmp_path: Path, prefix: str) -> None:
    with EmbeddedServer(tmp_path, settings={"maxmemory": "6mb", "maxmemory-policy": "noeviction"}) as server:
        async with RedisStateManager(server.url, prefix) as state:
            await state.save_agent_state(agent("a"))

            async def fill() -> None:
                for number in range(10_000):
                    await state.save_task_result(result(str(number), output_data={"x": "y" * 5000}))

            error = await failure(fill())
            assert error.error_code == "STATE_FULL"
            assert "maxmemory" in error.message
            before = await state.get_agent_state("a")
            full = await failure(state.save_agent_state(agent("a", metadata={"x": 1})))
            assert full.error_code == "STATE_FULL"
            assert await state.get_agent_state("a") == before
            assert await state.delete_task_result("0")
            for found in await state.list_task_results(limit=100):
                await state.delete_task_result(found.task_id)
            assert await state.save_agent_state(agent("a", metadata={"x": 1}))


async def test_a_replica_says_that_it_only_reads(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        redis.Redis.from_url(server.url).replicaof("127.0.0.1", str(free_port()))
        async with RedisStateManager(server.url) as state:
            assert (await failure(state.save_agent_state(agent("a")))).error_code == "STATE_READ_ONLY"


async def test_calls_wait_for_a_server_that_comes_back(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    with server:
        async with RedisStateManager(server.url, retry_seconds=30) as state:
            await state.save_agent_state(agent("a"))
            server.stop()
            calls = [asyncio.create_task(state.get_agent_state("a")) for _ in range(50)]
            calls.append(asyncio.create_task(state.save_agent_state(agent("b"))))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await asyncio.to_thread(server.start)
            assert all(await asyncio.wait_for(asyncio.gather(*calls), 30))


async def test_a_call_does_not_wait_longer_than_it_may(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        async with RedisStateManager(server.url, retry_seconds=0.1) as state:
            server.stop()
            calls = (state.get_agent_state("a") for _ in range(100))
            outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert {getattr(outcome, "error_code", None) for outcome in outcomes} == {"STATE_UNAVAILABLE"}
            assert state.is_connected


async def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        url = server.url
        async with RedisStateManager(url, reply_timeout=0.3, connect_timeout=0.3, retry_seconds=0) as state:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            try:
                assert (await failure(state.list_agent_states())).error_code == "STATE_UNAVAILABLE"
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert await state.list_agent_states() == []


async def test_cut_connections_lose_nothing(redis_url: str, prefix: str) -> None:
    raw = redis.Redis.from_url(redis_url)
    async with (
        RedisStateManager(redis_url, prefix) as state,
        RedisStateManager(redis_url, prefix) as counting,
    ):
        await counting.save_agent_state(agent("counter"))
        mine = {one["id"] for one in raw.client_list()}
        cutting = True

        async def cut() -> None:
            while cutting:
                for client in raw.client_list():
                    if client["id"] in mine and "evalsha" in client["cmd"]:
                        raw.client_kill_filter(_id=client["id"])
                await asyncio.sleep(0.005)

        cutter = asyncio.create_task(cut())
        for start in range(0, 2000, 100):
            await asyncio.gather(*(state.save_agent_state(agent(str(start + n))) for n in range(100)))
        cutting = False
        await cutter
        assert len(await state.list_agent_states()) == 2001


async def test_a_lost_reply_of_what_must_not_run_twice_is_told(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        async with RedisStateManager(server.url) as state:
            await state.save_agent_state(agent("a"))
            raw = redis.Redis.from_url(server.url)
            actions: list[Callable[[], Awaitable[object]]] = [
                lambda: state.update_agent_state("a", increment={"error_count": 1}),
                lambda: state.save_agent_state(agent("a"), expected_version=1),
                lambda: state.delete_agent_state("a"),
            ]
            for action in actions:
                await state.list_agent_states()
                # The server is paused for writes, so the command is under way when the connection is cut.
                send(raw, "CLIENT", "PAUSE", "60000", "WRITE")
                call = asyncio.ensure_future(action())
                await wait_until(
                    lambda: any("blocked" in one or one["flags"] != "N" for one in raw.client_list())
                )
                raw.client_kill_filter(_type="normal", skipme=True)
                send(raw, "CLIENT", "UNPAUSE")
                error = await failure(call)
                assert error.error_code == "STATE_UNAVAILABLE"
                assert error.details["maybe_done"] is True


async def test_a_watch_survives_a_restart_and_catches_up(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    with server:
        async with (
            RedisStateManager(server.url, "p:") as watching,
            watching.watch_agent_states() as changes,
        ):
            async with RedisStateManager(server.url, "p:") as writing:
                for name in ("kept", "changed", "deleted"):
                    await writing.save_agent_state(agent(name))
                    assert (await asyncio.wait_for(anext(changes), 10)).agent_id == name
            await asyncio.to_thread(server.stop)
            waiting = asyncio.create_task(anext(changes))
            # Changed while nobody could see it: through a server at the same data, on another port.
            with EmbeddedServer(tmp_path) as other:
                async with RedisStateManager(other.url, "p:") as writing:
                    await writing.update_agent_state("changed", status="running")
                    await writing.delete_agent_state("deleted")
                    await writing.save_agent_state(agent("new"))
            await asyncio.to_thread(server.start)
            seen = [await asyncio.wait_for(waiting, 20)]
            seen += [await asyncio.wait_for(anext(changes), 10) for _ in range(2)]
            assert {change.agent_id: change.state and change.state.status.value for change in seen} == {
                "changed": "running",
                "deleted": None,
                "new": "idle",
            }
            await watching.save_agent_state(agent("later"))
            assert (await asyncio.wait_for(anext(changes), 10)).agent_id == "later"


async def test_a_watch_that_is_garbage_leaves_no_connection(redis_url: str, prefix: str) -> None:
    raw = redis.Redis.from_url(redis_url, decode_responses=True)
    channel = f"{prefix}changes:agent"
    async with RedisStateManager(redis_url, prefix) as state:
        async with state.watch_agent_states():
            await wait_until(lambda: raw.pubsub_numsub(channel) == [(channel, 1)])
        await wait_until(lambda: raw.pubsub_numsub(channel) == [(channel, 0)])
        watch = state.watch_agent_states()
        await watch.start()
        await wait_until(lambda: raw.pubsub_numsub(channel) == [(channel, 1)])
        del watch
        await wait_until(lambda: raw.pubsub_numsub(channel) == [(channel, 0)])


async def test_a_change_that_cannot_be_read_is_logged_and_passed_over(
    redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = redis.Redis.from_url(redis_url)
    async with RedisStateManager(redis_url, prefix) as state, state.watch_agent_states() as changes:
        for nonsense in ("", "nonsense", "S x {}", "S 5 {}", "D 5"):
            raw.publish(f"{prefix}changes:agent", nonsense)
        await state.save_agent_state(agent("a"))
        assert (await asyncio.wait_for(anext(changes), 10)).agent_id == "a"
    assert f"{prefix}changes:agent" in caplog.text


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with EmbeddedServer(tmp_path / "data", settings={"unixsocket": str(path)}):
        async with RedisStateManager(f"unix://{path}?db=1") as state:
            await state.save_agent_state(agent("a"))
            assert await state.get_agent_state("a") is not None
        async with RedisStateManager(f"unix://{path}") as state:
            assert await state.get_agent_state("a") is None


@pytest.mark.parametrize(
    "reply",
    [
        "OOM command not allowed",
        "@user_script: 107: @user_script: 107: -OOM command not allowed",
        "ERR Error running script (call to f_0): @user_script:86: OOM command not allowed",
    ],
)
def test_what_old_servers_say_of_a_command_in_a_script_is_understood(reply: str) -> None:
    assert ReplyError(reply).word == "OOM"
