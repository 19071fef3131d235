"""Everything that the servers and processes of a test show, as text."""

import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import psutil
import redis
from kombu import Connection

from tests.support import rabbitmq

PAGES = ("/", "/workers", "/tasks", "/broker", "/metrics", "/healthcheck")
API = ("/api/workers?refresh=true", "/api/tasks", "/api/queues/length", "/api/task/types")


def in_redis(url: str) -> str:
    """All keys of all databases with their values."""
    lines: list[str] = []
    with redis.Redis.from_url(url) as first:
        databases = [int(name.removeprefix("db")) for name in first.info("keyspace")]
    for database in databases:
        with redis.Redis.from_url(url.rpartition("/")[0] + f"/{database}") as client:
            for key in client.scan_iter(count=1000):
                lines += [_text(key), *map(_text, _values(client, key))]
    return "\n".join(lines)


def _values(client: redis.Redis, key: bytes) -> list[bytes]:
    kind = client.type(key).decode()
    if kind == "hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    if kind == "list":
        return client.lrange(key, 0, -1)
    if kind == "set":
        return list(client.smembers(key))
    if kind == "zset":
        return client.zrange(key, 0, -1)
    if kind == "stream":
        return [part for _, fields in client.xrange(key) for pair in fields.items() for part in pair]
    assert kind in ("string", "none"), kind
    return [client.get(key) or b""]


def in_queues(url: str) -> str:
    """All messages in all queues of a virtual host, with their headers; they stay there."""
    lines: list[str] = []
    with Connection(url) as connection:
        queues = rabbitmq.list_objects("queues", url, "name", "exclusive")
        for name in (name for name, exclusive in queues if exclusive == "false"):
            channel = connection.channel()
            while (found := channel.basic_get(name)) is not None:
                lines += [name, _text(found.body), repr(found.headers), repr(found.properties)]
            channel.close()
    return "\n".join(lines)


def in_files(directory: Path) -> str:
    """All files below a directory."""
    return "\n".join(_text(path.read_bytes()) for path in directory.rglob("*") if path.is_file())


def in_command_lines() -> str:
    """The command lines of all processes that come from this one, as everybody on the machine sees them."""
    children = psutil.Process().children(recursive=True)
    files = [Path(f"/proc/{child.pid}/cmdline") for child in children]
    return "\n".join(" ".join(_text(file.read_bytes()).split("\0")) for file in files if file.exists())


def in_flower(port: int, login: str, task_ids: list[str], worker: str) -> str:
    """What Flower says by its API and on its pages, to who logs in."""
    tasks = [path for one in task_ids for path in (f"/task/{one}", f"/api/task/info/{one}")]
    paths = [*API, *PAGES, *tasks, f"/worker/{worker}"]
    return "\n".join(page(port, login, path) for path in paths)


def page(port: int, login: str, path: str) -> str:
    """One of it, be that an error."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return _text(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise
        return _text(error.read())


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else data.decode(errors="backslashreplace")
