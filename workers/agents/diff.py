"""A unified diff between two states of some files."""

import difflib
from collections.abc import Iterable
from pathlib import Path

NO_NEWLINE = "\\ No newline at end of file\n"


def read_files(paths: Iterable[Path]) -> dict[Path, bytes]:
    """The content of the files that exist."""
    return {path: path.read_bytes() for path in paths if path.is_file()}


def unified(root: Path, before: dict[Path, bytes], after: dict[Path, bytes]) -> tuple[str, list[str]]:
    """The diff as `git apply` and `patch -p1` take it, and the changed files, relative to root."""
    parts: list[str] = []
    changed: list[str] = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            name = path.relative_to(root).as_posix()
            changed.append(name)
            parts.append(_one(name, before.get(path, b""), after.get(path, b"")))
    return "".join(parts), changed


def _one(name: str, before: bytes, after: bytes) -> str:
    lines = difflib.unified_diff(_lines(before), _lines(after), f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}" for line in lines)


def _lines(content: bytes) -> list[str]:
    # Not splitlines: form feeds and the like, which it splits at, do not end a line of a patch.
    text = content.decode("utf-8", "replace")
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
