"""Ports of 127.0.0.1."""

import socket
import subprocess
from pathlib import Path

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def accepts(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    """Whether a server that was started takes connections; fail with the end of its log when it ended."""
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        socket.create_connection((HOST, port), timeout=2).close()
    except OSError:
        return False
    return True
