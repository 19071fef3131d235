"""Calls the functions of modules with inputs that Hypothesis makes, and writes each call as it happens.

A script, started by path: `python case_runner.py REPORT REQUEST`, two files. The request is JSON: `modules`,
`examples`, `seed`, `call_seconds`, and `done`, the names to leave out. It imports nothing of ours, so that
a project with packages of the same names is called as it is. Lines of the report are JSON: {"module"} before
an import, {"function"} before a function's first call, {"arguments"} before a call, {"returns"} or {"raises",
"message"} after it, {"skipped", "reason"} for what cannot be called, and {"end"}. Without that last line the
process died, or a call took too long, in what is named last.
"""

import faulthandler
import importlib
import inspect
import json
import os
import re
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

REPR_LIMIT = 10_000
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = re.compile(
    r"os\.(chdir|chmod|chown|exec|fork|forkpty|kill|killpg|link|mkdir|posix_spawn|putenv|remove|removexattr"
    r"|rename|rmdir|setxattr|spawn|startfile|symlink|system|truncate|unsetenv|utime)"
    r"|pty\.spawn|signal\.pthread_kill|socket\.(bind|connect|getaddrinfo|sendmsg|sendto)|sqlite3\.connect"
    r"|subprocess\.Popen|shutil\..+"
)


class SideEffectError(PermissionError):
    """A function wanted to change something outside its process."""


class Guard:
    """Refuses, while a call runs, what would change files, reach the network or start processes.

    A net, not a sandbox: it knows what Python announces as audit events.
    """

    def __init__(self) -> None:
        self.armed = False
        self.refused: set[str] = set()
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            flags = arguments[2]
            if isinstance(flags, int) and not flags & WRITING:
                return
        elif not FORBIDDEN.fullmatch(event):
            return
        what = "open for writing" if event == "open" else event
        self.refused.add(what)
        raise SideEffectError(f"{what} is refused while test data are made")


class UncallableError(Exception):
    """A function cannot be called with made-up arguments; the text says why."""


class Caller:
    """Makes arguments for functions, calls them and reports."""

    def __init__(self, report: TextIO, request: dict[str, Any]) -> None:
        self._report = report
        self._request = request
        self._guard = Guard()

    def run(self) -> None:
        for name in self._request["modules"]:
            if name not in self._request["done"]:
                self._module(name)
        self._write(end=True)

    def _module(self, name: str) -> None:
        self._write(module=name)
        self._limit_time()
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the project's
            self._write(skipped=name, reason=f"the module cannot be imported: {_sentence(error)}")
            return
        for function_name, function in _functions(module):
            full_name = f"{name}.{function_name}"
            if full_name in self._request["done"]:
                continue
            self._write(function=full_name)
            try:
                self._function(function)
            except UncallableError as error:
                self._write(skipped=full_name, reason=str(error))

    def _function(self, function: Any) -> None:
        from hypothesis import HealthCheck, Phase, given, seed, settings
        from hypothesis import strategies as st

        arguments = st.fixed_dictionaries(_strategies(function))
        own = settings(
            max_examples=self._request["examples"] if inspect.signature(function).parameters else 1,
            database=None,
            deadline=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        side_effects: set[str] = set()

        @seed(self._request["seed"])
        @own
        @given(arguments)
        def call_each(made: dict[str, Any]) -> None:
            # Not raised in here: Hypothesis would call again to see whether it is raised again.
            if not side_effects:
                side_effects.update(self._call(function, made))
            self._limit_time()

        self._limit_time()
        try:
            call_each()
        except Exception as error:
            raise UncallableError(f"no arguments can be made: {_sentence(error)}") from error
        if side_effects:
            raise UncallableError(f"it has side effects: {', '.join(sorted(side_effects))}")

    def _call(self, function: Any, made: dict[str, Any]) -> set[str]:
        """Call once; gives what was refused."""
        # Before the call, which may change its arguments, or never come back.
        self._write(arguments={name: _text(made[name]) for name in _parameters(function)})
        positional, named = _bound(function, made)
        self._limit_time()
        self._guard.refused, self._guard.armed = set(), True
        try:
            outcome = {"returns": _text(function(*positional, **named))}
        except (Exception, SystemExit) as error:  # noqa: BLE001  that is the outcome
            outcome = {"raises": type(error).__name__, "message": _clean(str(error))}
        finally:
            self._guard.armed = False
        self._write(**outcome)
        return self._guard.refused

    def _limit_time(self) -> None:
        # Ends the process also where C code holds the interpreter; each call to it starts the time anew.
        faulthandler.dump_traceback_later(self._request["call_seconds"], exit=True)

    def _write(self, **line: Any) -> None:
        self._report.write(json.dumps(line) + "\n")
        self._report.flush()


def _functions(module: ModuleType) -> list[tuple[str, Any]]:
    """The module's own public functions, in the order of their definition."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(inspect.unwrap(value) if callable(value) else value)
        and getattr(value, "__module__", None) == module.__name__
    ]


def _strategies(function: Any) -> dict[str, Any]:
    from hypothesis import strategies as st

    called = inspect.unwrap(function)
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise UncallableError("it is asynchronous")
    if inspect.isgeneratorfunction(called):
        raise UncallableError("it is a generator")
    try:
        hints = typing.get_type_hints(called)
    except Exception as error:
        raise UncallableError(f"a type hint cannot be resolved: {_sentence(error)}") from error
    found = {}
    for name, parameter in _parameters(function).items():
        if name not in hints:
            raise UncallableError(f"its parameter '{name}' has no type hint")
        strategy = st.from_type(hints[name])
        try:
            strategy.validate()
        except Exception as error:
            shown = inspect.formatannotation(parameter.annotation)
            reason = f"no values can be made for '{name}: {shown}': {_sentence(error)}"
            raise UncallableError(reason) from error
        found[name] = strategy
    return found


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _bound(function: Any, made: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    kinds = {name: parameter.kind for name, parameter in _parameters(function).items()}
    by_place = [made[name] for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY]
    named = {n: made[n] for n, kind in kinds.items() if kind is not inspect.Parameter.POSITIONAL_ONLY}
    return by_place, named


def _text(value: Any) -> str:
    return _clean(repr(value))


def _clean(text: str) -> str:
    """The same in every run: without the addresses that objects happen to have."""
    text = ADDRESS.sub(" at 0x...", text)
    return text if len(text) <= REPR_LIMIT else f"{text[:REPR_LIMIT]}..."


def _sentence(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return _clean(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def main(report: str, request: str) -> None:
    # In place of this script's directory, whose modules are not for the project.
    sys.path[0] = str(Path.cwd())
    with Path(report).open("w", encoding="utf-8") as file:
        Caller(file, json.loads(Path(request).read_text(encoding="utf-8"))).run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    # Threads that the project's code left running must not keep the process.
    os._exit(0)
