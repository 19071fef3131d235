"""What a wheel says about itself."""

import configparser
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from workers.agents.failure import WorkFailedError

CODE = (".py", ".so", ".pyd")


@dataclass(frozen=True)
class Wheel:
    """A wheel: its name and version, the console scripts it brings and the modules at its top."""

    path: Path
    name: str
    version: str
    scripts: list[str]
    modules: list[str]

    @property
    def main_script(self) -> str | None:
        """The console script with the name of the wheel, else its first."""
        return self.name if self.name in self.scripts else next(iter(self.scripts), None)


def newest_wheel(directory: Path) -> Path:
    """The wheel of a directory that was written last; WorkFailedError where there is none."""
    wheels = sorted(directory.glob("*.whl"), key=lambda wheel: (wheel.stat().st_mtime_ns, wheel.name))
    if not wheels:
        raise WorkFailedError(
            f"there is no wheel in {directory}: build it first (the devops agent does), or set the task's "
            "input 'wheel' to the path of one"
        )
    return wheels[-1]


def read_wheel(path: Path) -> Wheel:
    """Read a wheel; WorkFailedError where it is none."""
    if not path.is_file():
        raise WorkFailedError(f"there is no wheel {path}: set the task's input 'wheel' to the path of one")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, configparser.Error) as error:
        raise WorkFailedError(f"{path} is not a wheel: {error}") from None


def _read(path: Path, archive: zipfile.ZipFile) -> Wheel:
    names = archive.namelist()
    info = next((name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA")), None)
    if info is None:
        raise WorkFailedError(f"{path} is not a wheel: it has no METADATA")
    metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
    entries = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    entries.optionxform = str  # type: ignore[assignment,method-assign]
    if f"{info}/entry_points.txt" in names:
        entries.read_string(archive.read(f"{info}/entry_points.txt").decode())
    scripts = sorted(entries["console_scripts"]) if entries.has_section("console_scripts") else []
    return Wheel(path, metadata["Name"], metadata["Version"], scripts, _modules(names))


def _modules(names: list[str]) -> list[str]:
    """The packages and modules that the wheel puts at the top, those of its data directory left out."""
    found: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        if path.suffix in CODE:
            top = path.parts[0] if len(path.parts) > 1 else path.name.partition(".")[0]
            found |= {top} if top.isidentifier() else set()
    return sorted(found)
