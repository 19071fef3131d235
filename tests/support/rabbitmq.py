"""A RabbitMQ virtual host of the tests' own on the machine's server, where there is one."""

import functools
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kombu import Connection, Exchange

from tests.support.certificates import ServerTLS
from tests.support.ports import HOST, accepts, free_port
from tests.support.waiting import wait_until_sync

PORT = 5672
REQUIRED = "CONDUCTOR_TEST_REQUIRE_RABBITMQ"
URL = "CONDUCTOR_TEST_RABBITMQ_URL"
#: Debian's wrapper of the same name does not let settings through.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def control(*arguments: str) -> str:
    """Run rabbitmqctl; what it wrote."""
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
        control("list_vhosts")
    except subprocess.SubprocessError as error:
        return f"rabbitmqctl may not be used by this user ({error}); set {URL} instead"
    return None


def skip_without_ctl() -> None:
    """Skip the test where no virtual host with settings of its own can be made."""
    skip_without()
    if shutil.which("rabbitmqctl") is None:
        pytest.skip("no rabbitmqctl here")


def skip_without() -> None:
    """Skip the test where there is no RabbitMQ, or fail it where there has to be one."""
    if reason := absence():
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"RabbitMQ is required here: {reason}")
        pytest.skip(f"RabbitMQ: {reason}")


def skip_without_users() -> None:
    """The same where no users can be made."""
    skip_without()
    if os.environ.get(URL):
        pytest.skip(f"{URL} names a virtual host in which no users can be made")


@contextmanager
def virtual_host(default_queue_type: str | None = None, task_queues: str | None = None) -> Iterator[str]:
    """The URL of an empty virtual host, deleted afterwards; or the one the environment names.

    One with a default type of queues, or where the URL names the type of queues of tasks, is always made,
    which needs rabbitmqctl.
    """
    if default_queue_type is None and task_queues is None and (given := os.environ.get(URL)):
        yield given
        return
    name = f"conductor-test-{uuid.uuid4().hex[:12]}"
    control("add_vhost", name, *(["--default-queue-type", default_queue_type] if default_queue_type else []))
    try:
        control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        query = f"?task_queues={task_queues}" if task_queues else ""
        yield f"amqp://guest:guest@{HOST}:{PORT}/{name}{query}"
    finally:
        control("delete_vhost", name)


@contextmanager
def user(name: str, password: str, url: str, configure: str, write: str, read: str) -> Iterator[None]:
    """A user with these rights in the virtual host in url, deleted afterwards."""
    control("add_user", name, password)
    try:
        control("set_permissions", "-p", _vhost(url), name, configure, write, read)
        yield
    finally:
        control("delete_user", name)


def refuse(name: str) -> None:
    """Change the password of a user to one that nobody knows, and end the user's connections."""
    control("change_password", name, uuid.uuid4().hex)
    control("close_all_user_connections", name, "the password was changed")


def declare_topic_exchange(url: str, name: str) -> None:
    """Make a durable topic exchange."""
    with Connection(url) as connection:
        Exchange(name, type="topic", durable=True)(connection.default_channel).declare()


def server_absence() -> str | None:
    """Why no RabbitMQ of a test's own can be started, or None where one can."""
    if not SERVER.exists():
        return f"no {SERVER}, which the test starts with settings of its own"
    return None


@contextmanager
def server(directory: Path, consumer_timeout: float = 1800.0, tls: ServerTLS | None = None) -> Iterator[str]:
    """The URL of a RabbitMQ of one's own, which waits so many seconds for acknowledgements.

    One that is started in the directory of another has what that one kept. One with `tls` has no other port.
    """
    settings, name = directory / "rabbitmq.conf", uuid.uuid5(uuid.NAMESPACE_URL, str(directory)).hex[:12]
    port, distribution_port, mapper_port = free_port(), free_port(), free_port()
    lines = [f"consumer_timeout = {consumer_timeout * 1000:.0f}", *_listener(port, tls)]
    settings.write_text("\n".join(lines) + "\n")
    (directory / "plugins").touch()
    # It looks once a minute by itself.
    erlang = "-rabbit channel_tick_interval 500 -kernel inet_dist_use_interface {127,0,0,1} +S 1:1"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),  # for the cookie
        "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": str(mapper_port),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
        "RABBITMQ_NODENAME": f"conductor-test-{name}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_CONFIG_FILE": str(settings),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
    }
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [SERVER], env=environment, cwd=directory, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        started = functools.partial(accepts, process, port, directory / "output")
        wait_until_sync(started, timeout=90, interval=0.2)
        yield (
            f"amqp://guest:guest@{HOST}:{port}//"
            if tls is None
            else f"amqps://guest:guest@localhost:{port}//"
        )
    finally:
        process.terminate()
        process.wait(30)
        # Erlang starts a port mapper, which would stay.
        subprocess.run(["epmd", "-port", str(mapper_port), "-kill"], check=False, capture_output=True)


def _listener(port: int, tls: ServerTLS | None) -> list[str]:
    if tls is None:
        return [f"listeners.tcp.1 = {HOST}:{port}"]
    return [
        "listeners.tcp = none",
        f"listeners.ssl.1 = {HOST}:{port}",
        f"ssl_options.cacertfile = {tls.authority}",
        f"ssl_options.certfile = {tls.certificate.file}",
        f"ssl_options.keyfile = {tls.certificate.key}",
        f"ssl_options.verify = {'verify_peer' if tls.demands_certificate else 'verify_none'}",
        f"ssl_options.fail_if_no_peer_cert = {str(tls.demands_certificate).lower()}",
    ]


def _vhost(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def connections(url: str) -> set[str]:
    """The processes that serve the connections to the virtual host in url."""
    vhost = _vhost(url)
    rows = [
        line.split("\t")
        for line in control("--no-table-headers", "list_connections", "pid", "vhost").splitlines()
    ]
    return {pid for pid, its_vhost in rows if its_vhost == vhost}


def list_objects(kind: str, url: str, *columns: str) -> list[list[str]]:
    """What `rabbitmqctl list_<kind>` says of the virtual host in url, one row each, without the header."""
    vhost = _vhost(url)
    rows = control("--no-table-headers", f"list_{kind}", "-p", vhost, *columns).splitlines()
    return [row.split("\t") for row in rows]
