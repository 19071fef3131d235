"""The bus, dead letters and nodes through Sentinel."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.exceptions import MessageBusError
from conductor.store._valkey import find_binary
from tests.support import redis_tls
from tests.support.certificates import Authority, ServerTLS
from tests.support.exercise import bus_works, dead_letters_work, nodes_take_tasks, refusal
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync


@contextmanager
def running(command: list[str], directory: Path, client: "redis.Redis") -> Iterator[None]:
    """Run a server until the block ends; the client tells when it answers."""
    with (
        (directory / "log").open("ab") as log,
        subprocess.Popen(command, cwd=directory, stdout=log, stderr=log) as process,
        client,
    ):

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        try:
            wait_until_sync(answers)
            yield
        finally:
            process.kill()


@pytest.fixture
def sentinel_port(tmp_path: Path) -> Iterator[int]:
    """A Sentinel that knows one master, named main."""
    master, sentinel = free_port(), free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(f"port {sentinel}\nsentinel monitor main 127.0.0.1 {master} 1\n")
    binary = str(find_binary())
    serve = [binary, "--port", str(master), "--bind", "127.0.0.1", "--save", ""]
    with (
        running(serve, tmp_path, redis.Redis(port=master)),
        running([binary, str(configuration), "--sentinel"], tmp_path, redis.Redis(port=sentinel)),
    ):
        yield sentinel


async def test_the_master_is_found_through_sentinels(sentinel_port: int) -> None:
    dead = free_port()
    url = f"sentinel://127.0.0.1:{dead};sentinel://127.0.0.1:{sentinel_port}/0?master_name=main"
    async with KombuMessageBus(url) as bus:
        await bus_works(bus)
    await dead_letters_work(url)
    await asyncio.to_thread(nodes_take_tasks, url)
    with pytest.raises(MessageBusError, match="nobody") as raised:
        await KombuMessageBus(f"sentinel://127.0.0.1:{sentinel_port}/0?master_name=nobody").connect()
    assert raised.value.error_code == "BROKER_UNAVAILABLE"


async def test_sentinels_and_the_master_have_tls_where_the_url_names_certificates(tmp_path: Path) -> None:
    redis_tls.skip_without()
    authority = Authority(tmp_path)
    # The address of the master is what the Sentinels say.
    master_tls = ServerTLS(authority.server("127.0.0.1"), authority.file)
    sentinel_tls = ServerTLS(authority.server("localhost"), authority.file, demands_certificate=True)
    configuration = tmp_path / "sentinel.conf"
    with redis_tls.server(tmp_path, master_tls) as master:
        configuration.write_text(f"tls-replication yes\nsentinel monitor main 127.0.0.1 {master} 1\n")
        with redis_tls.server(tmp_path, sentinel_tls, str(configuration), "--sentinel") as sentinel:
            url = f"sentinel://localhost:{sentinel}/0?master_name=main&ssl_ca_certs={authority.file}"
            trusted = f"{url}&{authority.client().parameters}"
            async with KombuMessageBus(trusted) as bus:
                await bus_works(bus)
            await dead_letters_work(trusted)
            await asyncio.to_thread(nodes_take_tasks, trusted)
            patient = KombuMessageBus(url, connect_timeout=60)
            assert "No master found for 'main'" in await refusal(patient.connect)
            other = trusted.replace("localhost", "127.0.0.1")
            assert "sentinel://127.0.0.1" in await refusal(KombuMessageBus(other).connect)
            async with KombuMessageBus(f"{other}&ssl_check_hostname=no"):
                pass
