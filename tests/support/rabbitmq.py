"""A RabbitMQ virtual host of the tests' own on the machine's server, where there is one."""

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

HOST, PORT = "127.0.0.1", 5672
REQUIRED = "CONDUCTOR_TEST_REQUIRE_RABBITMQ"
URL = "CONDUCTOR_TEST_RABBITMQ_URL"


def _ctl(*arguments: str) -> str:
    return subprocess.run(
        ["rabbitmqctl", "--quiet", *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def absence() -> str | None:
    """Why no RabbitMQ can be used, or None where one can."""
    if os.environ.get(URL):
        return None
    if shutil.which("rabbitmqctl") is None:
        return f"no rabbitmqctl here (or set {URL} to a virtual host the tests may use)"
    try:
        socket.create_connection((HOST, PORT), timeout=2).close()
    except OSError as error:
        return f"no RabbitMQ at {HOST}:{PORT}: {error}"
    try:
        _ctl("list_vhosts")
    except subprocess.SubprocessError as error:
        return f"rabbitmqctl may not be used by this user ({error}); set {URL} instead"
    return None


@contextmanager
def virtual_host() -> Iterator[str]:
    """The URL of an empty virtual host, deleted afterwards; or the one the environment names."""
    if given := os.environ.get(URL):
        yield given
        return
    name = f"conductor-test-{uuid.uuid4().hex[:12]}"
    _ctl("add_vhost", name)
    try:
        _ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        yield f"amqp://guest:guest@{HOST}:{PORT}/{name}"
    finally:
        _ctl("delete_vhost", name)


def connections(url: str) -> set[str]:
    """The processes that serve the connections to the virtual host in url."""
    vhost = url.rsplit("/", 1)[1]
    rows = [
        line.split("\t")
        for line in _ctl("--no-table-headers", "list_connections", "pid", "vhost").splitlines()
    ]
    return {pid for pid, its_vhost in rows if its_vhost == vhost}


def list_objects(kind: str, url: str, *columns: str) -> list[list[str]]:
    """What `rabbitmqctl list_<kind>` says of the virtual host in url, one row each, without the header."""
    vhost = url.rsplit("/", 1)[1]
    rows = _ctl("--no-table-headers", f"list_{kind}", "-p", vhost, *columns).splitlines()
    return [row.split("\t") for row in rows]
