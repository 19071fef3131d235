"""The bus, dead letters and nodes through Sentinel and over TLS."""

import asyncio
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from conductor.broker import topology
from conductor.broker.dead_letter_queue import DeadLetterQueue
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.core.config import ConductorConfig
from conductor.core.enums import MessageType
from conductor.core.exceptions import MessageBusError
from conductor.core.messages import AgentMessage
from conductor.store._valkey import find_binary
from tests.support.buses import Inbox, a_message, unique
from tests.support.consuming import consuming
from tests.support.consuming import put as put_tasks
from tests.support.letters import a_letter, put
from tests.support.waiting import wait_until_sync


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


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


async def works(bus: KombuMessageBus) -> None:
    """Subscribe, publish more than fits into one TLS record, and ask."""
    channel, inbox = unique("works"), Inbox()

    async def answer(message: AgentMessage) -> None:
        await bus.publish("conductor:response", message.create_response("r", MessageType.FEEDBACK))

    await bus.subscribe(f"{channel}*", inbox)
    await bus.subscribe(f"{channel}:ask", answer)
    for number in range(50):
        await bus.publish(channel, a_message(number, payload={"number": number, "text": "x" * 20_000}))
    await inbox.has(*range(50))
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
        await works(bus)
    await dead_letters_work(url)
    await asyncio.to_thread(nodes_take_tasks, url)
    with pytest.raises(MessageBusError, match="nobody") as raised:
        await KombuMessageBus(f"sentinel://127.0.0.1:{sentinel_port}/0?master_name=nobody").connect()
    assert raised.value.error_code == "BROKER_UNAVAILABLE"


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server with TLS, and the certificate to trust."""
    server, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if server is None or openssl is None:
        pytest.skip("no redis-server and openssl here: the embedded server has no TLS")
    key, certificate, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    request = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    request += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True)
    serve = [server, "--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", "--save", ""]
    serve += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--bind", "127.0.0.1"]
    client = redis.Redis("localhost", port, ssl=True, ssl_ca_certs=str(certificate))
    with running(serve, tmp_path, client):
        yield port, certificate


async def test_tls_with_a_certificate_that_is_verified(tls_server: tuple[int, Path]) -> None:
    port, certificate = tls_server
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
    async with KombuMessageBus(url) as bus:
        await works(bus)
    await dead_letters_work(url)
    await asyncio.to_thread(nodes_take_tasks, url)
    with pytest.raises(MessageBusError, match="certificate verify failed") as raised:
        await KombuMessageBus(f"rediss://localhost:{port}/0").connect()
    assert raised.value.error_code == "BROKER_UNAVAILABLE"
