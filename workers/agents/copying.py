"""Copying a project so that no path in the copy leads back into the original."""

import os
import shutil
import stat
import threading
from pathlib import Path

MARKER = ".conductor-workspace"
EXCLUDED = frozenset(
    {
        *(".git", ".hg", ".svn", ".jj", ".venv", ".tox", ".nox", ".eggs", ".idea", ".vscode", MARKER),
        *("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "node_modules"),
    }
)
EXCLUDED_AT_THE_TOP = frozenset({"build", "dist"})


class CopyCancelledError(Exception):
    """Whoever wanted the copy left."""


class ProjectCopier:
    """Copies one directory tree; blocking, so it runs in a thread and looks at `cancelled` at every file.

    Links inside the project stay links, made relative. Files and directories that a link reaches outside
    are copied, since a tool that writes through a link would change the original. Dangling links,
    sockets and devices are left out, as are version control, virtual environments and caches.
    """

    def __init__(self, project: Path, target: Path, cancelled: threading.Event | None = None) -> None:
        self._project = project.resolve()
        self._target = target
        self._cancelled = cancelled or threading.Event()

    def copy(self) -> None:
        """Make `target`, which must not exist; OSError names what could not be read or written."""
        self._directory(self._project, self._target, frozenset())

    def _directory(self, source: Path, target: Path, above: frozenset[Path]) -> None:
        real = source.resolve()
        if real in above:
            return
        target.mkdir()
        with os.scandir(source) as entries:
            for entry in entries:
                if not self._is_left_out(entry, top=not above):
                    self._entry(entry, target / entry.name, above | {real})

    def _is_left_out(self, entry: os.DirEntry[str], *, top: bool) -> bool:
        if entry.name in EXCLUDED or (top and entry.name in EXCLUDED_AT_THE_TOP):
            return True
        if not entry.is_dir():
            return False
        return entry.name.endswith(".egg-info") or os.path.lexists(f"{entry.path}/pyvenv.cfg")

    def _entry(self, entry: os.DirEntry[str], target: Path, above: frozenset[Path]) -> None:
        if self._cancelled.is_set():
            raise CopyCancelledError
        if entry.is_symlink() and self._keep_link(Path(entry.path), target):
            return
        try:
            mode = entry.stat().st_mode
        except OSError:
            if entry.is_symlink():
                return
            raise
        if stat.S_ISDIR(mode):
            self._directory(Path(entry.path), target, above)
        elif stat.S_ISREG(mode):
            shutil.copyfile(entry.path, target)
            target.chmod(stat.S_IMODE(mode) | stat.S_IRUSR | stat.S_IWUSR)

    def _keep_link(self, link: Path, target: Path) -> bool:
        """Keep a link whose end is in the project; False where it must be followed."""
        try:
            end = link.resolve(strict=True).relative_to(self._project)
            place = link.parent.resolve().relative_to(self._project)
        except (OSError, RuntimeError, ValueError):
            return False
        target.symlink_to(os.path.relpath(self._target / end, self._target / place))
        return True
