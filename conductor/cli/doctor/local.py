"""What there is to check without any server."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from conductor.cli.doctor.findings import Finding, ok, problem, warning
from conductor.core.config import DEFAULT_FILE, ENV_PREFIX
from conductor.core.versions import DISTRIBUTION, installed, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conductor.core.config import ConductorConfig

#: Bytes of free disk space below which it is a warning, and a problem.
LITTLE_SPACE, NO_SPACE = 1024**3, 100 * 1024**2


def check_versions() -> list[Finding]:
    """Hold what is installed against what the installed distribution asks for."""
    wrong = list(_unfit())
    if wrong:
        advice = f"Install what fits: pip install --upgrade {DISTRIBUTION}"
        return [problem("versions", f"Conductor does not work with {', '.join(wrong)}.", advice)]
    return [ok("versions", ", ".join(f"{name} {version}" for name, version in installed().items()) + ".")]


def _unfit() -> Iterator[str]:
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if wanted and platform.python_version() not in SpecifierSet(wanted):
        yield f"Python {platform.python_version()} (it needs {wanted})"
    for text in metadata.requires(DISTRIBUTION) or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = version_of(needed.name)
        if not needed.specifier.contains(version, prereleases=True):
            yield f"{needed.name} {version} (it needs {needed.specifier})"


def check_settings(file: Path | None) -> list[Finding]:
    """Say where the settings come from; that they are valid is known by now."""
    sources = [str(file)] if file else [str(DEFAULT_FILE)] if DEFAULT_FILE.is_file() else []
    sources += sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and os.environ[name])
    where = ", ".join(sources) if sources else "the defaults"
    return [ok("settings", f"Valid; from {where}.")]


def check_data_dir(config: ConductorConfig) -> list[Finding]:
    """Try to write to the directory of the embedded server and of workspaces, and look at its disk."""
    directory = config.data_dir
    place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        if not place.is_dir():
            raise NotADirectoryError(20, "Not a directory", str(place))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return [
            problem(
                "data_dir",
                f"{directory} cannot be written to ({error.strerror}: {place}): neither the embedded server "
                "nor a workflow can keep anything there.",
                "Make it a directory that this user may write to, or set CONDUCTOR_DATA_DIR to one.",
            )
        ]
    written = ok("data_dir", f"{directory} can be written to.")
    return [written, _disk_space(place, shutil.disk_usage(place).free)]


def _disk_space(place: Path, free: int) -> Finding:
    size = f"{free / 1024**2:.0f} MiB"
    if free >= LITTLE_SPACE:
        return ok("disk space", f"{free / 1024**3:.1f} GiB are free below {place}.")
    how = problem if free < NO_SPACE else warning
    return how(
        "disk space",
        f"Only {size} are free below {place}, and a server without space refuses every write.",
        "Free space there, or set CONDUCTOR_DATA_DIR to a directory on a larger disk.",
    )
