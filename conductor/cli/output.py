"""What the commands write: for a person, or JSON for a program."""

import json
import logging
import sys
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conductor.core.log_ids import StandardError
from conductor.core.secrets import scrub

UNCUT = 1000
ERROR_STYLE, NOTE_STYLE = "bold red", "dim"


class Output:
    """A person reads standard output, unless a program does: then it gets JSON there, the person the rest."""

    def __init__(self, *, as_json: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose
        """Whether a person wants stack traces."""
        self.human = _console(sys.stderr if as_json else sys.stdout)
        self._notes = _console(sys.stderr)

    def say(self, text: str | Text = "") -> None:
        """Write a line for a person."""
        self.human.print(text, soft_wrap=True)

    @property
    def is_narrow(self) -> bool:
        """Whether a person reads it on a terminal, which is as wide as it is."""
        return self.human.is_terminal

    def show(self, table: Table) -> None:
        """Write a table for a person; one that goes into a file or a pipe is neither cut nor padded."""
        if self.is_narrow:
            self.human.print(table)
            return
        console = _console(self.human.file, width=UNCUT)
        with console.capture() as text:
            console.print(table)
        self.say("\n".join(line.rstrip() for line in text.get().splitlines()))

    def ask(self, question: str) -> None:
        """Write a question, on standard error, whose answer follows in the same line."""
        self._notes.print(question, end="", soft_wrap=True)

    def note(self, text: str) -> None:
        """Write a line about what goes on, to standard error."""
        self._notes.print(Text(text, NOTE_STYLE), soft_wrap=True)

    def emit(self, data: Any, *, indent: int | None = None) -> None:
        """Write JSON for a program, in one line unless indented; nothing where a person reads."""
        if self.as_json:
            write_json(data, indent=indent)


def write_json(data: Any, *, indent: int | None = None) -> None:
    """Write JSON to standard output at once."""
    sys.stdout.write(json.dumps(data, indent=indent) + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """Say what went wrong, to standard error."""
    first, _, rest = scrub(message).partition("\n")
    console = _console(sys.stderr)
    console.print(Text.assemble(("error: ", ERROR_STYLE), first), soft_wrap=True)
    if rest:
        console.print(rest, soft_wrap=True)


def configure_logging(level: str, log_format: str = "auto", *, verbose: bool) -> None:
    """Send log records to standard error: with -v all of `level` with their stack traces, else warnings.

    A person reads it, unless `log_format` is "json".
    """
    logging.basicConfig(
        level=level if verbose else "WARNING", handlers=[_handler(log_format, verbose)], force=True
    )
    # It logs the failure of every task, which the commands report themselves.
    logging.getLogger("conductor.orchestration.workflow_phase").disabled = not verbose


def _handler(log_format: str, verbose: bool) -> logging.Handler:
    handler = StandardError()
    if verbose or log_format == "json":
        # Takes a while to import.
        from conductor.core.log_lines import configure_structlog, formatter_for

        handler.setFormatter(formatter_for("json" if log_format == "json" else "console", sys.stderr))
        configure_structlog()
    else:
        handler.setFormatter(_OneLine())
    return handler


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {scrub(record.getMessage())}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave to `execute` what rich would end with code 1, as if something had failed."""
        raise  # noqa: PLE0704 - rich calls it where it caught the error


def _console(file: IO[str], width: int | None = None) -> Console:
    return _Console(file=file, width=width, markup=False, emoji=False, highlight=False)
