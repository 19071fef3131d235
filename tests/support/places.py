"""A `conductor up` on each kind of broker, and the commands of a person beside it."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conductor.broker.addresses import Addresses
from conductor.cli.commands import app
from conductor.store.embedded import EmbeddedServer
from tests.support import rabbitmq
from tests.support.cli import Background, background
from tests.support.projects import write_files

AGENTS = """
import asyncio
from pathlib import Path

from pydantic import BaseModel

from conductor import ConductorError, agent


class Order(BaseModel):
    say: str = ""
    wait_for: Path | None = None
    fails: int = 0


tries = 0


@agent("coding")
async def loud(data: Order) -> dict:
    global tries
    tries += 1 if data.fails else 0
    if data.fails >= tries > 0:
        raise ConductorError("not now", "TRANSIENT_ERROR")
    while data.wait_for and not data.wait_for.exists():
        await asyncio.sleep(0.02)
    if not data.say:
        raise ValueError("nothing to say")
    return {"said": data.say.upper()}
"""


@dataclass
class Place:
    """A directory with a conductor.yaml, in which `conductor up` runs."""

    directory: Path
    up: Background

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def run(self, *arguments: str, code: int | None = 0) -> str:
        """Run a command in this process, which is quicker than one of its own; give what it wrote."""
        place = {"CONDUCTOR_DATA_DIR": str(self.data), "COLUMNS": "120", "NO_COLOR": "1"}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.directory)
            done = CliRunner().invoke(app, arguments, env=place)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert code is None or done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    def json(self, *arguments: str, code: int | None = 0) -> Any:
        text = self.run(*arguments, "--json", code=code)
        return json.loads(text[text.index("[" if text.startswith("[") else "{") :])


@contextmanager
def own_servers(kind: str, directory: Path) -> Iterator[Addresses]:
    """Servers on which nothing of another test waits or is shown."""
    with contextlib.ExitStack() as stack:
        if kind == "rabbitmq":
            rabbitmq.skip_without()
        store = stack.enter_context(EmbeddedServer(directory / "valkey")).url
        broker = stack.enter_context(rabbitmq.virtual_host()) if kind == "rabbitmq" else store
        yield Addresses(broker, store)


@contextmanager
def place_on(kind: str, directory: Path, more: str = "") -> Iterator[Place]:
    """An agent loud-1 on the embedded server, on a Valkey, or on RabbitMQ, with `more` settings."""
    with contextlib.ExitStack() as stack:
        settings = more
        if kind != "embedded":
            addresses = stack.enter_context(own_servers(kind, directory))
            settings += f"broker_url: {addresses.broker_url}\nredis:\n  url: {addresses.redis_url}\n"
        write_files(directory, {"loud.py": AGENTS, "conductor.yaml": settings})
        up = stack.enter_context(
            background(directory / "data", "up", "--agents", "loud:loud", "--json", cwd=directory)
        )
        up.wait_for_event(event="ready")
        yield Place(directory, up)
