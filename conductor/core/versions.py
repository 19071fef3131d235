"""What is installed, and in which version."""

from __future__ import annotations

import platform
from importlib import metadata

DISTRIBUTION = "conductorai"
#: What carries messages and state, and is named with its version.
_SHOWN = ("celery", "kombu", "redis", "amqp")


def installed() -> dict[str, str]:
    """Give the versions of Python, of Conductor and of what it stands on."""
    versions = {"python": platform.python_version(), "conductor": version_of(DISTRIBUTION)}
    return versions | {name: version_of(name) for name in _SHOWN}


def version_of(distribution: str) -> str:
    """Give the version of a distribution, "0" where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "0"
