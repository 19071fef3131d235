"""Running what a command does: its event loop, signals, and the one place that catches errors."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer

from conductor.cli.output import complain, configure_logging
from conductor.core.config import ConductorConfig, load_config
from conductor.core.exceptions import ConductorError, ConfigurationError
from conductor.core.tracing_setup import configure_tracing
from conductor.core.wording import traceback_text

FAILED, WRONG_USE = 1, 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Work = Callable[[ConductorConfig], Coroutine[Any, Any, int]]


@dataclass(frozen=True)
class Settings:
    """What the options before the command's name say."""

    config_file: Path | None = None
    verbose: bool = False


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal ended the work, after it cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def execute(settings: Settings, work: Work, *, ends_with_signal: bool = False) -> NoReturn:
    """Do the work and end the command with its exit code.

    The first SIGINT, SIGTERM or SIGHUP cancels the work, every further one what it does to clean up. The
    code is 128 + the signal's number then, or 0 where a signal is how the command is meant to end. Under
    nohup SIGHUP stays ignored.
    """
    try:
        code = asyncio.run(_interruptible(work, _prepare(settings)))
    except Interrupted as interruption:
        code = 0 if ends_with_signal else 128 + interruption.number
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output left, as `| head` does. Python would complain once more while exiting.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - nobody above could say it better
        code = _report(error, verbose=settings.verbose)
    raise typer.Exit(code)


def _prepare(settings: Settings) -> ConductorConfig:
    config = load_config(settings.config_file)
    configure_logging(config.log_level, config.log_format, verbose=settings.verbose)
    configure_tracing(config.tracing)  # What it exports is flushed when the interpreter ends.
    return config


def _report(error: Exception, *, verbose: bool) -> int:
    if verbose:
        sys.stderr.write(traceback_text(error))
    if isinstance(error, ConductorError):
        complain(error.message)
        return WRONG_USE if isinstance(error, ConfigurationError) else FAILED
    if isinstance(error, OSError):
        complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return WRONG_USE if isinstance(error, FileNotFoundError) else FAILED
    complain(f"this should not happen: {type(error).__name__}: {error}\nconductor -v ... shows where.")
    return FAILED


async def _interruptible(work: Work, config: ConductorConfig) -> int:
    loop, received = asyncio.get_running_loop(), list[int]()
    task: Awaitable[int] = asyncio.ensure_future(work(config))

    def interrupt(number: int) -> None:
        received.append(number)
        task.cancel()  # type: ignore[attr-defined]

    signals = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    for number in signals:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number in signals:
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)
