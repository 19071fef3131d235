"""Redis over TLS, as broker and for states and results: what is checked, and what is said."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flower.utils.broker import Broker

from conductor.broker.addresses import Addresses
from conductor.broker.kombu_bus import KombuMessageBus
from conductor.store.redis_state import RedisStateManager
from tests.support import redis_tls
from tests.support.certificates import Authority, ServerTLS
from tests.support.cli import conductor
from tests.support.exercise import (
    a_node_works,
    bus_works,
    dead_letters_work,
    nodes_take_tasks,
    refusals,
    state_refusal,
)
from tests.support.nodes import Farm


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    redis_tls.skip_without()
    return Authority(tmp_path)


@pytest.fixture
def stranger(authority: Authority, tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


@pytest.fixture
def demanding(authority: Authority, tmp_path: Path) -> Iterator[int]:
    """The port of one that is localhost, but not 127.0.0.1, and demands certificates of its clients."""
    tls = ServerTLS(authority.server("localhost"), authority.file, demands_certificate=True)
    with redis_tls.server(tmp_path, tls) as port:
        yield port


@pytest.fixture
def parameters(authority: Authority) -> str:
    client = authority.client(password="of-the-key").parameters
    return f"ssl_ca_certs={authority.file}&{client}&ssl_password=of-the-key"


async def test_all_works_with_certificates_on_both_sides(
    demanding: int, parameters: str, tmp_path: Path
) -> None:
    url = f"rediss://localhost:{demanding}/0?{parameters}"
    async with KombuMessageBus(url) as bus:
        await bus_works(bus)
    await dead_letters_work(url)
    nodes_take_tasks(url)
    farm = Farm(Addresses(url, url), tmp_path)
    try:
        await a_node_works(farm)
        settings = farm.app.conf
        flower = Broker(settings.broker_url, broker_options={}, broker_use_ssl=settings.broker_use_ssl)
        assert [queue["messages"] for queue in await flower.queues(["conductor.dlq"])] == [0]
    finally:
        farm.teardown()


async def assert_refused(url: str, words: str) -> None:
    for message in [*await refusals(Addresses(url, url)), await state_refusal(url)]:
        assert re.search(words, message), (url, message)
        assert "ssl.c" not in message


async def test_what_is_wrong_with_a_certificate_is_said(
    demanding: int, parameters: str, stranger: Authority
) -> None:
    trusted, client = parameters.split("&", 1)
    url, other = f"rediss://localhost:{demanding}/0", f"rediss://127.0.0.1:{demanding}/0"
    await assert_refused(f"{url}?{client}", "not trusted.*ssl_ca_certs=")
    await assert_refused(f"{url}?ssl_ca_certs={stranger.file}&{client}", "not trusted.*ssl_ca_certs=")
    await assert_refused(f"{other}?{parameters}", "another host.*not valid for '127.0.0.1'")
    await assert_refused(f"{url}?{trusted}", "client certificate.*ssl_certfile=")
    foreign = stranger.client().parameters
    await assert_refused(f"{url}?{trusted}&{foreign}", "client certificate.*ssl_certfile")


@pytest.mark.parametrize("expired", [True, False])
async def test_a_certificate_that_is_out_of_date_or_anothers_is_refused(
    authority: Authority, expired: bool, tmp_path: Path
) -> None:
    certificate = authority.server("localhost" if expired else "elsewhere.example", expired=expired)
    with redis_tls.server(tmp_path, ServerTLS(certificate, authority.file)) as port:
        words = "out of date.*has expired.*renew it" if expired else "another host.*not valid for 'localhost'"
        await assert_refused(f"rediss://localhost:{port}/0?ssl_ca_certs={authority.file}", words)


@pytest.mark.parametrize("less", ["ssl_check_hostname=false", "ssl_cert_reqs=none"])
async def test_less_is_checked_where_the_url_says_so(demanding: int, parameters: str, less: str) -> None:
    trusted, client = parameters.split("&", 1)
    told = client if "none" in less else f"{trusted}&{client}"
    url = f"rediss://127.0.0.1:{demanding}/0?{told}&{less}"
    async with KombuMessageBus(url), RedisStateManager(url):
        pass


def test_doctor_says_what_is_wrong_with_the_certificate_of_the_state_store(
    demanding: int, parameters: str, valkey_url: str, tmp_path: Path
) -> None:
    url = f"rediss://127.0.0.1:{demanding}/0?{parameters}"
    (tmp_path / "conductor.yaml").write_text(json.dumps({"broker_url": valkey_url, "redis": {"url": url}}))
    done = conductor(tmp_path / "data", "doctor", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert "of-the-key" not in done.stdout + done.stderr
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}["state store"]
    assert found["level"] == "problem"
    assert "its certificate is for another host" in found["meaning"]
    assert "CONDUCTOR_REDIS__URL: write a name or an address into the URL" in found["advice"]
