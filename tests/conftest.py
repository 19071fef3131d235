"""Servers that the whole run shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import rabbitmq


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this run's own. Tests share it: they use ids and key prefixes that nobody else uses."""
    from conductor.store.embedded import EmbeddedServer

    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    """A virtual host of this run's own."""
    rabbitmq.skip_without()
    with rabbitmq.virtual_host() as url:
        yield url


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith("CONDUCTOR_") and not name.startswith("CONDUCTOR_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))
