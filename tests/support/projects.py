"""Real Python projects to work on."""

from pathlib import Path

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "demo"
version = "0.3.0"
requires-python = ">=3.11"

[tool.hatch.build.targets.wheel]
packages = ["demo"]

[tool.ruff.lint]
select = ["E", "F"]
"""

MODULE = """\
import sys
import os


def greet( name ):
    return f"hello {name}" + os.sep
"""

TESTS = """\
from demo.greeting import greet


def test_greets():
    assert greet("you").startswith("hello you")
"""


def write_files(root: Path, files: dict[str, str | bytes]) -> Path:
    """Write files, making their directories, and return root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def make_project(root: Path, files: dict[str, str | bytes] | None = None) -> Path:
    """A package `demo` with something to fix, a test that passes and a wheel that builds; `files` on top."""
    base: dict[str, str | bytes] = {
        "pyproject.toml": PYPROJECT,
        "demo/__init__.py": "",
        "demo/greeting.py": MODULE,
        "tests/test_greeting.py": TESTS,
    }
    return write_files(root, base | (files or {}))


def snapshot(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every path below root with its mode and content, to see that nothing changed."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            found[str(path.relative_to(root))] = (mode, str(path.readlink()))
        else:
            found[str(path.relative_to(root))] = (mode, path.read_bytes() if path.is_file() else b"")
    return found
