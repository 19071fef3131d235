"""The command line: `python -m benchmarks [--only a,c] [--quick] [--json] [--write]`."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.harness import ROOT, Plan
from benchmarks.table import Row, machine, render
from conductor.store.embedded import EmbeddedServer

SECTIONS = {
    "a": ("publish", "benchmarks.publish:measure"),
    "b": ("request", "benchmarks.request:measure"),
    "c": ("tasks", "benchmarks.tasks:measure"),
    "d": ("state", "benchmarks.state:measure"),
    "e": ("event loop", "benchmarks.publish:measure_lag"),
}
_PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Run the sections on one server and print the table."""
    options = _options()
    rows: list[Row] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        about = machine(server.url)
        for letter in options.only:
            name, _ = SECTIONS[letter]
            print(f"{time.monotonic() - began:5.0f} s  {letter} {name} ...", file=sys.stderr, flush=True)
            rows += _load(letter)(Plan(server.url, options.quick))
    about["took"] = f"{time.monotonic() - began:.0f} s"
    if options.json:
        print(json.dumps({"machine": about, "rows": [row.as_json() for row in rows]}, indent=1))
    else:
        print(render(rows))
        print("\n".join(f"{key}: {value}" for key, value in about.items()))
    if options.write:
        _write(rows, about)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    known = ", ".join(f"{letter} {name}" for letter, (name, _) in SECTIONS.items())
    parser.add_argument("--only", type=_letters, default=list(SECTIONS), help=f"letters, as in a,c: {known}")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print JSON with every round")
    parser.add_argument("--write", action="store_true", help=f"also write {_PAGE.relative_to(ROOT)}")
    return parser.parse_args()


def _letters(text: str) -> list[str]:
    letters = [letter.strip() for letter in text.split(",") if letter.strip()]
    if unknown := [letter for letter in letters if letter not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(SECTIONS)}")
    return letters


def _load(letter: str) -> Callable[[Plan], list[Row]]:
    module, _, attribute = SECTIONS[letter][1].partition(":")
    found: Callable[[Plan], list[Row]] = getattr(import_module(module), attribute)
    return found


def _write(rows: list[Row], about: dict[str, str]) -> None:
    text = Path(__file__).with_name("page.md").read_text()
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    _PAGE.parent.mkdir(exist_ok=True)
    _PAGE.write_text(text.format(table=render(rows), machine=facts))


if __name__ == "__main__":
    main()
