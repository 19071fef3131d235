"""RabbitMQ over TLS: what is checked, and what is said when it does not do."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conductor.broker.addresses import Addresses
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.broker.topology import type_queue
from conductor.broker.transport import kombu_connection
from conductor.core.enums import AgentType
from tests.support import rabbitmq, redis_tls
from tests.support.buses import Inbox, a_message, unique
from tests.support.certificates import Authority, ServerTLS
from tests.support.cli import COMMAND, background, conductor, environment
from tests.support.exercise import a_node_works, bus_works, dead_letters_work, refusals
from tests.support.nodes import Farm
from tests.support.waiting import wait_until_sync


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if reason := rabbitmq.server_absence():
        pytest.skip(reason)
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def stranger(authority: Authority) -> Authority:
    return Authority(authority.file.parent, "stranger")


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that is localhost, but not 127.0.0.1, and demands certificates of its clients."""
    tls = ServerTLS(authority.server("localhost"), authority.file, demands_certificate=True)
    with rabbitmq.server(tmp_path_factory.mktemp("rabbitmq"), tls=tls) as url:
        yield url


@pytest.fixture(scope="module")
def parameters(authority: Authority) -> str:
    return f"ssl_ca_certs={authority.file}&{authority.client().parameters}"


@pytest.fixture(params=["classic", "quorum"])
def farm(
    request: pytest.FixtureRequest, server: str, parameters: str, valkey_url: str, tmp_path: Path
) -> Iterator[Farm]:
    url = f"{server}?{parameters}&task_queues={request.param}"
    farm = Farm(Addresses(url, f"{valkey_url.rpartition('/')[0]}/10"), tmp_path)
    yield farm
    farm.teardown()
    with kombu_connection(url) as connection:
        # The next may want the other type.
        type_queue(AgentType.CODING)(connection.default_channel).delete()


async def test_all_works_with_certificates_on_both_sides(farm: Farm) -> None:
    url = farm.addresses.broker_url
    async with KombuMessageBus(url) as bus:
        await bus_works(bus)
    await dead_letters_work(url)
    await a_node_works(farm)


async def test_what_is_wrong_with_a_certificate_is_said(
    server: str, parameters: str, authority: Authority, stranger: Authority, valkey_url: str
) -> None:
    trusted, client = parameters.split("&", 1)
    other = server.replace("localhost", "127.0.0.1")
    for url, words in {
        f"{server}?{client}": "not trusted.*ssl_ca_certs=",
        f"{server}?ssl_ca_certs={stranger.file}&{client}": "not trusted.*ssl_ca_certs=",
        f"{other}?{parameters}": "another host.*not valid for '127.0.0.1'",
        f"{server}?{trusted}": "client certificate.*ssl_certfile=",
        f"{server}?{trusted}&{stranger.client().parameters}": "client certificate.*ssl_certfile",
        other.replace("amqps", "amqp"): "Connection reset by peer",
    }.items():
        for message in await refusals(Addresses(url, valkey_url)):
            assert re.search(words, message), (url, message)
            assert "ssl.c" not in message


async def test_a_certificate_that_has_expired_is_refused(
    authority: Authority, valkey_url: str, tmp_path: Path
) -> None:
    tls = ServerTLS(authority.server("localhost", expired=True), authority.file)
    with rabbitmq.server(tmp_path, tls=tls) as url:
        for message in await refusals(Addresses(f"{url}?ssl_ca_certs={authority.file}", valkey_url)):
            assert re.search("out of date.*has expired.*renew it", message)


async def test_a_server_without_tls_is_recognised(rabbitmq_url: str, valkey_url: str) -> None:
    for message in await refusals(Addresses(rabbitmq_url.replace("amqp://", "amqps://"), valkey_url)):
        assert "does not speak TLS at this port" in message


@pytest.mark.parametrize("less", ["ssl_check_hostname=false", "ssl_cert_reqs=none"])
def test_less_is_checked_where_the_url_says_so(server: str, parameters: str, less: str) -> None:
    trusted, client = parameters.split("&", 1)
    told = client if "none" in less else f"{trusted}&{client}"
    with kombu_connection(f"{server.replace('localhost', '127.0.0.1')}?{told}&{less}") as connection:
        connection.ensure_connection(max_retries=0)


def test_the_name_that_is_checked_is_that_of_the_url_also_after_the_connection_was_cloned(
    server: str, parameters: str
) -> None:
    with kombu_connection(f"{server}?{parameters}") as connection:
        connection.ensure_connection(max_retries=0)
        with connection.clone() as clone:
            clone.ensure_connection(max_retries=0)


def run(
    arguments: list[str], server: str, valkey_url: str, tmp_path: Path
) -> subprocess.CompletedProcess[str]:
    servers = {"CONDUCTOR_BROKER_URL": server, "CONDUCTOR_REDIS__URL": valkey_url}
    done = subprocess.run(
        [COMMAND, *arguments],
        env=environment(tmp_path) | servers,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_commands_say_what_is_wrong_with_a_certificate(
    server: str, authority: Authority, valkey_url: str, tmp_path: Path
) -> None:
    url = f"{server.replace('localhost', '127.0.0.1')}?ssl_ca_certs={authority.file}"
    status = run(["status", "--json"], url, valkey_url, tmp_path)
    assert status.returncode == 1
    assert "its certificate is for another host" in json.loads(status.stdout)["broker"]["error"]
    doctor = run(["doctor", "--json"], url, valkey_url, tmp_path)
    found = {each["check"]: each for each in json.loads(doctor.stdout)["findings"]}["broker"]
    assert found["level"] == "problem"
    assert "its certificate is for another host" in found["meaning"]
    assert "CONDUCTOR_BROKER_URL: write a name or an address into the URL" in found["advice"]
    wrong = run(["status"], f"{server}?ssl_ca_certs=/nowhere/ca.pem", valkey_url, tmp_path)
    assert wrong.returncode == 2
    assert "broker_url in environment variable CONDUCTOR_BROKER_URL is not valid" in wrong.stderr
    assert "ssl_ca_certs='/nowhere/ca.pem' cannot be used" in " ".join(wrong.stderr.split())


AGENT = """
from conductor import agent


@agent("coding")
async def speaker(task: dict) -> dict:
    return {"said": task["say"]}
"""


async def test_commands_their_nodes_and_a_group_that_deduplicates_use_both_servers_over_tls(
    server: str, parameters: str, authority: Authority, tmp_path: Path
) -> None:
    redis_tls.skip_without()
    data = tmp_path / "data"
    tls = ServerTLS(authority.server("localhost"), authority.file, demands_certificate=True)
    with redis_tls.server(tmp_path, tls) as port:
        settings = {
            "broker_url": f"{server}?{parameters}",
            "redis": {"url": f"rediss://localhost:{port}/0?{parameters}"},
        }
        (tmp_path / "conductor.yaml").write_text(json.dumps(settings))
        (tmp_path / "speaker.py").write_text(AGENT)
        with background(data, "up", "--agents", "speaker:speaker", "--json", cwd=tmp_path) as up:
            up.wait_for_event(event="ready")
            order = ["dispatch", "--agent", "speaker-1", "-i", "say=hello", "--json"]
            done, status, doctor, letters = (
                conductor(data, *words, cwd=tmp_path)
                for words in (order, ["status", "--json"], ["doctor", "--json"], ["dlq", "list"])
            )
        assert "hello" in done.stdout, repr(done)
        assert json.loads(status.stdout)["healthy"], repr(status)
        levels = {each["check"]: each["level"] for each in json.loads(doctor.stdout)["findings"]}
        assert [levels[check] for check in ("broker", "state store", "nodes agree")] == ["ok"] * 3
        assert letters.returncode == 0, repr(letters)
        inbox, channel = Inbox(), unique("works")
        async with KombuMessageBus(settings["broker_url"], dedup_url=settings["redis"]["url"]) as bus:
            await bus.subscribe(channel, inbox, group="all", deduplicate=60)
            first = a_message(1)
            for message in (first, first, a_message(2)):
                await bus.publish(channel, message)
            await inbox.has(1, 2)


def test_a_node_says_why_it_does_not_connect(server: str, valkey_url: str, tmp_path: Path) -> None:
    farm = Farm(Addresses(server, valkey_url), tmp_path)
    try:
        node = farm.start("ObedientAgent")
        wait_until_sync(lambda: "certificate verify failed" in node.logs(), timeout=60)
    finally:
        farm.teardown()
