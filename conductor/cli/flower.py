"""`conductor flower`: Celery's web monitor, on the servers that are configured or run."""

import difflib
import importlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from conductor.broker.addresses import find_addresses
from conductor.broker.queue_depths import read_queue_depths
from conductor.cli.node_process import BARE_APP, node_environment
from conductor.cli.output import Output
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConfigurationError

#: Where Flower takes user and password from, since everybody sees command lines.
AUTH_VARIABLE = "FLOWER_BASIC_AUTH"


async def run_flower(
    config: ConductorConfig,
    output: Output,
    address: str,
    port: int,
    basic_auth: str | None,
    options: Sequence[str],
) -> NoReturn:
    """Become Flower; before that, raise what is wrong with options, a broker that is away or a taken port."""
    _require_known(options)
    addresses = find_addresses(config)
    read_queue_depths(addresses.broker_url, timeout=config.bus.connect_timeout)
    _require_free(address, port)
    environment = node_environment(config, addresses, "")
    if basic_auth is not None:
        environment[AUTH_VARIABLE] = basic_auth
    output.note(f"Flower starts on http://{address}:{port}; Ctrl-C ends it")
    command = [sys.executable, "-m", "celery", "-A", BARE_APP, "flower"]
    command += [f"--address={address}", f"--port={port}", *options]
    os.execve(sys.executable, command, environment)  # noqa: S606 - there is no shell in between


def _require_known(arguments: Sequence[str]) -> None:
    """Raise ConfigurationError for what Flower 2 would pass over without a word, and for lacking values."""
    importlib.import_module("flower.options")  # defines them
    known = importlib.import_module("tornado.options").options
    for argument in arguments:
        name, has_value, _ = argument.lstrip("-").partition("=")
        if not argument.startswith("-"):
            raise ConfigurationError(f"{argument!r} is no option: Flower's are written --name=value")
        if name not in known:
            close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f": did you mean --{close[0]}?" if close else "; they are listed in Flower's documentation"
            raise ConfigurationError(f"Flower has no option --{name}{hint}")
        if not has_value and type(known[name]) is not bool:
            raise ConfigurationError(f"--{name} needs a value: --{name}=VALUE")


def _require_free(address: str, port: int) -> None:
    try:
        with socket.create_server((address, port)):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"Flower cannot listen on {address}:{port} ({error.strerror}): choose another with --port"
        ) from error
