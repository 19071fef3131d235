"""Working copies: what the tools may change instead of the project."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from workers.agents.copying import MARKER, CopyCancelledError, ProjectCopier
from workers.agents.failure import WorkFailedError

LOCK_INTERVAL = 0.05


@contextlib.asynccontextmanager
async def working_copy(
    project: Path, workspace: Path | None = None, *, exclusive: bool = False
) -> AsyncIterator[Path]:
    """The copy of a project to work in; WorkFailedError where there can be none.

    Without a workspace it is temporary and gone afterwards. With one it is that directory, made by
    whoever comes first and kept: others may be in it at the same time, unless one of them asked for it
    exclusively.
    """
    check_project(project)
    if workspace is None:
        async with temporary_copy(project) as copy:
            yield copy
        return
    _check_apart(project, workspace)
    await _make_if_missing(project, workspace)
    _check_marker(project, workspace)
    async with _lock(workspace / MARKER, exclusive=exclusive):
        yield workspace


@contextlib.asynccontextmanager
async def temporary_copy(project: Path) -> AsyncIterator[Path]:
    """A copy of a directory that vanishes afterwards; it has the name of the directory."""
    parent = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="conductor-work-"))
    try:
        copy = parent / (project.name or "project")
        await _copy(project, copy)
        yield copy
    finally:
        await asyncio.to_thread(shutil.rmtree, parent, ignore_errors=True)


def check_project(project: Path) -> None:
    """Raise WorkFailedError unless this is a directory with Python in it."""
    if not project.exists():
        raise WorkFailedError(
            f"there is no directory {project}: set the task's input 'project' to an existing one"
        )
    if not project.is_dir():
        raise WorkFailedError(f"{project} is not a directory: set the task's input 'project' to one")
    if not os.access(project, os.R_OK | os.X_OK):
        raise WorkFailedError(f"{project} may not be read by the user who runs this agent")
    declared = any((project / name).is_file() for name in ("pyproject.toml", "setup.py", "setup.cfg"))
    if not declared and next(project.rglob("*.py"), None) is None:
        raise WorkFailedError(
            f"{project} is not a Python project: it has no pyproject.toml, no setup.py and no Python file"
        )


def _check_apart(project: Path, workspace: Path) -> None:
    source, target = project.resolve(), workspace.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise WorkFailedError(
            f"the workspace {workspace} and the project {project} lie within each other: "
            "the project is never changed, so choose a workspace outside it"
        )


async def _make_if_missing(project: Path, workspace: Path) -> None:
    """Copy under another name and rename: there is a whole workspace or none; the first to finish wins."""
    if await asyncio.to_thread(_exists_or_prepare, workspace):
        return
    draft = workspace.with_name(f".{workspace.name}.{uuid.uuid4().hex}")
    try:
        await _copy(project, draft)
        _mark(draft, project)
        _rename_if_missing(draft, workspace)
    finally:
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)


def _exists_or_prepare(workspace: Path) -> bool:
    if workspace.is_dir():
        return any(workspace.iterdir())
    workspace.parent.mkdir(parents=True, exist_ok=True)
    return workspace.exists()


def _mark(draft: Path, project: Path) -> None:
    (draft / MARKER).write_text(json.dumps({"project": str(project.resolve())}))


def _rename_if_missing(draft: Path, workspace: Path) -> None:
    try:
        draft.rename(workspace)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise


def _check_marker(project: Path, workspace: Path) -> None:
    try:
        owner = json.loads((workspace / MARKER).read_text())["project"]
    except (FileNotFoundError, NotADirectoryError):
        raise WorkFailedError(
            f"the workspace {workspace} exists and was not made by an agent (it has no {MARKER}): "
            "choose a directory that does not exist yet"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise WorkFailedError(
            f"{workspace / MARKER} is damaged: delete the workspace and run again"
        ) from None
    if owner != str(project.resolve()):
        raise WorkFailedError(f"the workspace {workspace} is a copy of {owner}, not of {project}")


async def _copy(project: Path, target: Path) -> None:
    cancelled = threading.Event()
    copying = asyncio.ensure_future(asyncio.to_thread(ProjectCopier(project, target, cancelled).copy))
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        cancelled.set()
        with contextlib.suppress(CopyCancelledError, OSError):
            await copying
        raise


@contextlib.asynccontextmanager
async def _lock(path: Path, *, exclusive: bool) -> AsyncIterator[None]:
    # Tried again and again rather than waited for: a thread blocked in flock cannot be cancelled.
    with path.open("rb") as file:
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_INTERVAL)
        yield
