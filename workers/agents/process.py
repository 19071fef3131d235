"""Running tools as processes that end when the caller stops waiting for them."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("supervisor.py")
HIDDEN_PREFIXES = ("CONDUCTOR_", "CELERY_", "PYTEST_", "COV_CORE_", "FORKED_BY_", "RUFF_")
ENDING_LIMIT = 5.0
CHUNK = 65536


@dataclass(frozen=True)
class Finished:
    """What a process left: its exit code (128 + n for signal n) and the end of what it wrote."""

    code: int
    stdout: str
    stderr: str
    truncated: bool

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that ended it, if one did."""
        try:
            return signal.Signals(self.code - 128).name if self.code > 128 else None
        except ValueError:
            return None


class _Tail:
    """The last `limit` bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.truncated = False

    async def read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(CHUNK):
            self._kept += chunk
            if len(self._kept) > self._limit:
                del self._kept[: -self._limit]
                self.truncated = True

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a tool: ours without our settings, which hold passwords, and without colours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN_PREFIXES)}
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT"):
        kept.pop(name, None)
    kept |= {"NO_COLOR": "1", "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    return kept | dict(extra or {})


async def run(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None, limit: int = CHUNK
) -> Finished:
    """Run a command to its end and keep the last `limit` bytes of each of its two outputs.

    Cancelling the caller kills the command and all its descendants before CancelledError goes on; so
    does the death of this process. There is no time limit of its own: put `asyncio.timeout` around it.
    The command reads nothing.
    """
    process = await _start(command, cwd, environment(env))
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Tail(limit), _Tail(limit)
    try:
        await asyncio.gather(out.read(process.stdout), err.read(process.stderr))
        code = await process.wait()
    finally:
        await _end(process)
    return Finished(code, out.text(), err.text(), out.truncated or err.truncated)


async def _start(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str]
) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", str(SUPERVISOR)],
            *map(str, command),
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio (3.11) would kill the supervisor alone, which then can no longer kill what it started.
        await _end(await starting)
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the supervisor's lifeline; it kills its descendants. Where it does not, kill its group."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(ENDING_LIMIT):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
