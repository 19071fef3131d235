"""A Redis with TLS, of a test's own: the bundled server has none."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import ServerTLS
from tests.support.ports import HOST, accepts, free_port
from tests.support.waiting import wait_until_sync

REQUIRED = "CONDUCTOR_TEST_REQUIRE_REDIS_TLS"


def skip_without() -> None:
    """Skip the test where there is no redis-server, or fail it where there has to be one."""
    if shutil.which("redis-server") is None:
        reason = "no redis-server here, and the bundled server has no TLS"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def server(directory: Path, tls: ServerTLS, *options: str) -> Iterator[int]:
    """The port of a Redis that speaks TLS only, on 127.0.0.1; `options` go before its own."""
    port = free_port()
    command = ["redis-server", *options, "--port", "0", "--tls-port", str(port), "--bind", HOST]
    command += ["--tls-cert-file", str(tls.certificate.file), "--tls-key-file", str(tls.certificate.key)]
    command += ["--tls-ca-cert-file", str(tls.authority)]
    command += ["--tls-auth-clients", "yes" if tls.demands_certificate else "no"]
    with (directory / f"redis-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_sync(lambda: accepts(process, port, Path(log.name)))
        yield port
    finally:
        process.terminate()
        process.wait(10)
