"""All code in the documents is run or checked: Python, YAML and command lines."""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from conductor.cli.commands import app
from conductor.cli.workflow_file import load_workflow
from conductor.core.config import ConductorConfig, load_config
from tests.support.cli import background, environment
from tests.support.projects import write_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# The tests that run the Python of a page which wants more than to be run: several files, a certain agent.
OWN_TESTS = {
    "README.md": "test_readme.py",
    "agents.md": "test_agents_doc.py",
    "policies.md": "cli/test_policies.py",
    "quickstart.md": "test_quickstart_doc.py",
    "testing.md": "testing/test_testing_doc.py",
}
# Pages whose every block is a program that runs by itself, beside `conductor up`.
PROGRAMS = ["logging.md", "metrics.md"]


def blocks(page: Path, language: str) -> list[str]:
    fence = rf"^```{language}\b[^\n]*\n(.*?)^```"
    return re.findall(fence, page.read_text(), re.DOTALL | re.MULTILINE)


def every(language: str, names: Collection[str] = ()) -> list[object]:
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        if not names or page.name in names
        for number, block in enumerate(blocks(page, language), 1)
    ]


def check_command(words: list[str]) -> None:
    """Parse the words as conductor does; raises what it would say of wrong use."""
    command, name, context = typer.main.get_command(app), "conductor", None
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def unknown_words(words: list[str]) -> Iterator[str]:
    """The commands and options that there are not, in a command that need not be complete."""
    command = typer.main.get_command(app)
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and word != "-":
            name, _, value = word.partition("=")
            option = next((one for one in command.params if name in [*one.opts, *one.secondary_opts]), None)
            if option is None and word != "--help":
                yield word
            elif option is not None and not option.is_flag and not value:
                next(rest, None)
        elif hasattr(command, "commands"):
            if word not in command.commands:
                yield word
                return
            command = command.commands[word]


def conductor_commands(text: str) -> Iterator[list[str]]:
    """The words after `conductor`, without variables before it and what a shell does with its output."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(itertools.takewhile(lambda word: word[0] not in "|&;<>", lexer))
        words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
        if words[:1] == ["conductor"]:
            yield words[1:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data = tmp_path_factory.mktemp("docs") / "data"
    with background(data, "up", "--agents", "review", "--json") as up:
        up.wait_for_event(event="ready")
        yield data


def test_every_page_with_python_is_run_somewhere() -> None:
    with_python = {page.name for page in PAGES if blocks(page, "python")}
    assert with_python == {*OWN_TESTS, *PROGRAMS}
    for page, test in OWN_TESTS.items():
        assert f'"{page}"' in (ROOT / "tests" / test).read_text()


@pytest.mark.parametrize("program", every("python", PROGRAMS))
def test_a_program_runs(program: str, data: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"program.py": program})
    command = [sys.executable, "program.py"]
    done = subprocess.run(
        command, env=environment(data), cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", every("yaml"))
def test_yaml_is_what_it_says(text: str, tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(text))
    names = set(documents[0])
    write_files(tmp_path, {"file.yaml": text})
    if text.startswith("# conductor.yaml") or names <= ConductorConfig.model_fields.keys():
        load_config(tmp_path / "file.yaml")
    elif "tasks" in names:
        assert load_workflow(tmp_path / "file.yaml", {}, tmp_path).definition.tasks


@pytest.mark.parametrize("block", every("console"))
def test_what_is_typed_is_a_command_with_such_options(block: str) -> None:
    typed = re.findall(r"^\$ (.*(?:\\\n.*)*)", block, re.MULTILINE)
    assert typed
    for command in typed:
        for words in conductor_commands(command):
            check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_prose_calls_a_command_is_one(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`(conductor\s[^`]*)`", prose):
        for words in conductor_commands(" ".join(span.split())):
            assert not list(unknown_words(words)), span


@pytest.mark.parametrize("wrong", ["fly", "status --jsn", "dlq lst", "dlq show", "up --count many"])
def test_a_wrong_command_is_noticed(wrong: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|valid"):
        check_command(wrong.split())


@pytest.mark.parametrize("wrong", ["fly", "status --jsn", "dlq lst --json", "-c FILE fly"])
def test_a_wrong_command_in_prose_is_noticed(wrong: str) -> None:
    assert list(unknown_words(wrong.split()))
