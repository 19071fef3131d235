"""Where a project's modules are, found by its files: nothing is imported."""

import os
from collections.abc import Iterator
from pathlib import Path

from workers.agents.failure import WorkFailedError

NOT_OF_THE_PACKAGE = frozenset(
    {*("tests", "test", "docs", "examples", "benchmarks", "scripts"), *("setup", "conftest", "noxfile")}
)


def places(root: Path) -> list[Path]:
    """The directories from which a project's modules are imported: `src`, if it has one, and its own."""
    return [place for place in (root / "src", root) if place.is_dir()]


def import_path(root: Path) -> str:
    """The PYTHONPATH with which a project's modules are found."""
    return os.pathsep.join(map(str, places(root)))


def find_modules(root: Path, wanted: str | None) -> list[str]:
    """The dotted names of the modules that are wanted; of a package, all in it.

    `wanted` is a dotted name or a path relative to the root; None means every module of the project's
    packages, without its tests. WorkFailedError where there are none.
    """
    if wanted is None:
        found = _all(root)
        if not found:
            raise WorkFailedError(
                "the project has no package and no module: name one with the input 'module'"
            )
        return found
    name = _dotted(root, wanted)
    found = [module for place in places(root) for module in _below(place, name)]
    if not found:
        raise WorkFailedError(
            f"the project has no module {wanted!r}: neither in src nor in its own directory"
        )
    return list(dict.fromkeys(found))


def _all(root: Path) -> list[str]:
    for place in places(root):
        found = [module for name in _names(place, packages=True) for module in _below(place, name)]
        # Beside a package the files at the top of a project are tools, which would run when imported.
        if place != root or not found:
            found += _names(place, packages=False)
        if found:
            return sorted(found)
    return []


def _names(place: Path, *, packages: bool) -> list[str]:
    if packages:
        named = [entry.name for entry in place.iterdir() if any(entry.glob("*.py")) and _is_package(entry)]
    else:
        named = [file.stem for file in place.glob("*.py")]
    return sorted(name for name in named if _is_of_the_package(name))


def _is_package(directory: Path) -> bool:
    return (directory / "__init__.py").is_file() or directory.parent.name == "src"


def _below(place: Path, name: str) -> Iterator[str]:
    """The module of this name, or the package and all modules in it."""
    path = place.joinpath(*name.split("."))
    if path.with_name(f"{path.name}.py").is_file():
        yield name
    if not path.is_dir():
        return
    if (path / "__init__.py").is_file():
        yield name
    for entry in sorted(path.iterdir()):
        if entry.suffix == ".py" and entry.stem != "__init__" and _is_of_the_package(entry.stem):
            yield f"{name}.{entry.stem}"
        elif entry.is_dir() and _is_of_the_package(entry.name):
            yield from _below(place, f"{name}.{entry.name}")


def _is_of_the_package(name: str) -> bool:
    # __main__ is a program: importing it runs it.
    left_out = name in NOT_OF_THE_PACKAGE or name.startswith("test_") or name == "__main__"
    return name.isidentifier() and not left_out


def _dotted(root: Path, wanted: str) -> str:
    """A module's name from its name or its path."""
    name = wanted
    if "/" in wanted or wanted.endswith(".py"):
        path = Path(os.path.normpath(root / wanted))
        within = next((path.relative_to(place) for place in places(root) if path.is_relative_to(place)), None)
        if within is None:
            raise WorkFailedError(f"the task's input 'module' is {wanted!r}, which is not in the project")
        parts = within.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1:] == ("__init__",) else parts)
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise WorkFailedError(f"the task's input 'module' must be a module's name or path, not {wanted!r}")
    return name
