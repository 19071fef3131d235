"""One agent node, a Celery worker, as a child process that cannot outlive us."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from conductor.broker.addresses import Addresses
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConfigurationError
from conductor.core.fields import utc_now

if TYPE_CHECKING:
    from datetime import datetime

#: Celery's application for what needs none of the agents that come with Conductor.
BARE_APP = "conductor.broker.bare_app"
GUARD = Path(__file__).with_name("_node_guard.py")
GRACE_SECONDS = 10.0
GUARD_SECONDS = 5.0
LOG_LIMIT = 10 * 1024 * 1024
LOG_TAIL = 4000

Echo = Callable[[str], None]


def node_environment(
    config: ConductorConfig, addresses: Addresses, agent: str, path: Sequence[str] = ()
) -> dict[str, str]:
    """The environment that gives a node exactly our configuration, wherever ours came from.

    The working directory, and `path`, are on the path of a node whose agent, or exporter of spans, is
    package.module:name, and of no other: a `workers` of the user's must not be taken for ours.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
    node = config.node.model_copy(update={"agent": None, "agent_id": None})
    redis = config.redis.model_copy(update={"url": addresses.redis_url})
    env["CONDUCTOR_BROKER_URL"] = addresses.broker_url
    env["CONDUCTOR_REDIS"] = redis.model_dump_json()
    env["CONDUCTOR_DATA_DIR"] = str(config.data_dir.absolute())
    env["CONDUCTOR_LOG_LEVEL"] = config.log_level
    env["CONDUCTOR_LOG_FORMAT"] = config.log_format
    env["CONDUCTOR_BUS"] = config.bus.model_dump_json()
    env["CONDUCTOR_WORK"] = config.work.model_dump_json()
    env["CONDUCTOR_ERRORS"] = config.errors.model_dump_json()
    # One port is for one process: whoever starts nodes shows what they count.
    metrics = config.metrics.model_copy(update={"port": None})
    env["CONDUCTOR_METRICS"] = metrics.model_dump_json(exclude_none=True)
    env["CONDUCTOR_TRACING"] = config.tracing.model_dump_json(exclude_none=True)
    # Not in the command line, which everybody on the machine can read.
    env["CONDUCTOR_SIGNING"] = json.dumps(config.signing.dump_with_secrets())
    env["CONDUCTOR_NODE"] = node.model_dump_json(exclude_none=True)
    if ":" in agent or ":" in config.tracing.exporter:
        places = [*path, str(Path.cwd()), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    return env


class NodeProcess:
    """A node and the log it writes; belongs to one event loop."""

    def __init__(
        self,
        agent: str,
        agent_id: str,
        config: ConductorConfig,
        addresses: Addresses,
        echo: Echo | None = None,
        path: Sequence[str] = (),
    ) -> None:
        self.agent = agent
        self.agent_id = agent_id
        self.log = config.data_dir.absolute() / "logs" / f"{agent_id}.log"
        self.started_at: datetime | None = None
        self._app = BARE_APP if ":" in agent else "workers"
        self._config = config
        self._env = node_environment(config, addresses, agent, path)
        self._echo = echo
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._copying: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process; it is ready when its agent's heartbeat is filed.

        ConfigurationError, code DATA_DIR, where the log cannot be written.
        """
        with _open_log(self.log) as log:
            self._log_start = log.tell()
            self.started_at = utc_now()
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-I", "-S", str(GUARD), str(GRACE_SECONDS)],
                *[sys.executable, "-m", "celery", "-A", self._app, "worker"],
                *["--agent", self.agent, "-n", f"{self.agent_id}@%h", "--loglevel", self._config.log_level],
                cwd=self._config.data_dir,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=log if self._echo is None else asyncio.subprocess.PIPE,
                stderr=log if self._echo is None else asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        if self._echo is not None:
            self._copying = asyncio.create_task(self._copy_output(self._process.stdout, self._echo))

    async def wait(self) -> int:
        """Wait for the end of the process and give its exit code, 128 + n where signal n ended it."""
        assert self._process is not None
        code = await self._process.wait()
        if self._copying is not None:
            await self._copying
        return code

    async def stop(self) -> None:
        """Let the node finish its task for up to GRACE_SECONDS, then kill it; cancelled, kill it at once."""
        if self._process is None:
            return
        try:
            self._tell(b"e")
            await self._wait_or_kill(GRACE_SECONDS + GUARD_SECONDS)
        except asyncio.CancelledError:
            self._tell(b"k")
            await self._wait_or_kill(GUARD_SECONDS)
            raise

    async def _wait_or_kill(self, limit: float) -> None:
        """Wait for the guard to do its work; one that cannot is killed with its process group."""
        assert self._process is not None
        try:
            async with asyncio.timeout(limit):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """Kill all processes of the node, as a machine that fails would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The end of what this start of the node logged."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - LOG_TAIL))
            # Takes a while to import, and is seldom needed.
            from conductor.core.log_lines import as_text

            said = map(as_text, log.read().decode("utf-8", "replace").strip().split("\n"))
            return "\n".join("\n".join(said).splitlines()[-8:])
        return ""

    def _tell(self, word: bytes) -> None:
        stdin: Any = self._process.stdin if self._process else None
        with contextlib.suppress(OSError, RuntimeError):
            stdin.write(word)

    async def _copy_output(self, output: asyncio.StreamReader | None, echo: Echo) -> None:
        assert output is not None
        with _open_log(self.log) as log:
            async for line in _lines(output):
                log.write(line)
                log.flush()
                echo(self._for_a_person(line.decode("utf-8", "replace").rstrip()))

    def _for_a_person(self, line: str) -> str:
        """Write a line of the log as it is echoed; who asked for JSON gets it."""
        from conductor.core.log_lines import as_text

        return line if self._config.log_format == "json" else f"[{self.agent_id}] {as_text(line)}"


async def _lines(output: asyncio.StreamReader) -> Any:
    while True:
        try:
            line = await output.readuntil(b"\n")
        except asyncio.IncompleteReadError as end:
            line = end.partial
        except asyncio.LimitOverrunError as long:
            line = await output.readexactly(long.consumed)
        if not line:
            return
        yield line


def _open_log(path: Path) -> BinaryIO:
    """Open a log for appending; one that has grown too large is put aside."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".log.1"))
        log = path.open("ab")
    except OSError as error:
        raise ConfigurationError(
            f"data_dir: {error.filename} cannot be written ({error.strerror}): make {path.parents[1]} a "
            "writable directory or set CONDUCTOR_DATA_DIR to one",
            "DATA_DIR",
            {"path": str(path)},
        ) from error
    log.seek(0, os.SEEK_END)
    return log
