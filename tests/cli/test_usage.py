"""Wrong use ends with code 2 and a sentence that helps, never with a stack trace."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from conductor.cli import main
from conductor.cli.commands import app
from tests.support.cli import COMMAND, environment
from tests.support.projects import write_files


def invoke(*arguments: str, stdin: str = "") -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(
        app, list(arguments), input=stdin
    )


def test_the_version_is_told() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output.startswith("conductor 0.")


@pytest.mark.parametrize("command", ["up", "run", "dispatch", "publish", "request", "listen"])
def test_every_command_has_help(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert command in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "No such command 'fly'"),
        (["run"], "Missing argument"),
        (["run", "w.yaml", "--set", "project"], "'project' is not KEY=VALUE"),
        (["run", "missing.yaml"], "missing.yaml: there is no such file"),
        (["-c", "missing.yaml", "listen", "x"], "There is no configuration file 'missing.yaml'"),
        (["run", "w.yaml", "--id", "a b"], "The workflow id 'a b' is not usable: ' ' is not allowed"),
        (["run", "w.yaml", "--id", ""], "The workflow id '' is not usable: it is empty"),
        (["run", "w.yaml", "--id", "../a"], "'../a' is the name of a directory too"),
        (["run", "w.yaml", "--max-feedback-loops", "-1"], "Invalid value for '--max-feedback-loops'"),
        (["dispatch"], "--type TYPE or --agent ID"),
        (["dispatch", "-t", "cooking"], "'cooking' is not one of"),
        (["dispatch", "-t", "coding", "-i", "=x"], "'=x' is not KEY=VALUE"),
        (["dispatch", "-t", "coding", "--input-json", "[1]"], "not an object"),
        (["dispatch", "-t", "coding", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["publish", "conductor:broadcast", "--payload", "{"], "'{' is not JSON"),
        (["publish", "conductor:broadcast", "--sender", ""], "Invalid value for --sender"),
        (["publish", "conductor:broadcast", "--type", "shout"], "'shout' is not one of"),
        (["request", "conductor:broadcast", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["listen"], "Missing argument"),
        (["up", "--count", "0"], "Invalid value for '--count'"),
        (["up", "--agents", "coding,cooking"], "There is no agent 'cooking'. Known agents: coding, "),
        (["up", "--agents", ""], "it names no agent; leave it out to start all"),
        (["up", "--agents", "nowhere.at.all:Agent"], "cannot be imported: No module named 'nowhere'"),
    ],
)
def test_wrong_use_is_explained(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (:", "cannot be imported: SyntaxError: invalid syntax (agent_of_a_test.py, line 1)."),
        ("x = 1\ny = z", "NameError: name 'z' is not defined (agent_of_a_test.py, line 2)"),
        (
            "import conductor\n@conductor.agent('monitr')\nasync def Text(): ...",
            "(agent_of_a_test.py, line 2).",
        ),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3 (agent_of_a_test.py, line 1)."),
        ("import nosuch.lib", "it imports 'nosuch', which is not installed here (agent_of_a_test.py,"),
        ("x = 1", "cannot be imported: module 'agent_of_a_test' has no attribute 'Text'. It has to be"),
        ("class Text: pass", "'agent_of_a_test:Text' is no agent: that is a subclass of conductor.BaseAgent"),
    ],
)
def test_a_mistake_in_the_users_agent_is_told_before_anything_starts(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "agent_of_a_test", raising=False)
    write_files(tmp_path, {"agent_of_a_test.py": text})
    result = invoke("up", "--agents", "agent_of_a_test:Text")
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "data-home").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["dispatch", "-t", "coding"],
        ["publish", "conductor:broadcast"],
        ["request", "conductor:agent:a"],
        ["listen", "conductor:*"],
    ],
)
def test_without_a_server_the_way_out_is_told(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "conductor.yaml"
    config.write_text(f"data_dir: {tmp_path / 'data'}\n")
    result = invoke("-c", str(config), *arguments)
    assert result.exit_code == 2
    assert "start one with 'conductor up', or set CONDUCTOR_BROKER_URL" in result.output
    assert "Traceback" not in result.output


def test_a_broker_that_is_not_there_is_a_failure_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDUCTOR_BROKER_URL", "redis://:hidden-word@127.0.0.1:1/0")
    monkeypatch.setenv("CONDUCTOR_BUS", '{"connect_timeout": 0.5}')
    result = invoke("publish", "conductor:broadcast")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "127.0.0.1" in result.output
    assert "hidden-word" not in result.output
    assert "Traceback" not in result.output


def test_a_bad_channel_is_explained(tmp_path: Path) -> None:
    result = invoke("publish", "conductor:agent:*")
    assert result.exit_code == 1
    assert "'*' is allowed only in a pattern" in result.output


def test_a_broken_configuration_file_is_explained(tmp_path: Path) -> None:
    config = tmp_path / "conductor.yaml"
    config.write_text("brooker_url: redis://localhost\n")
    result = invoke("-c", str(config), "up")
    assert result.exit_code == 2
    assert "brooker_url" in result.output


def test_a_broker_of_an_unknown_kind_is_told_with_its_setting(tmp_path: Path) -> None:
    config = tmp_path / "conductor.yaml"
    config.write_text("broker_url: http://x\n")
    result = invoke("-c", str(config), "listen", "x")
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert f"broker_url in file '{config}' is not valid: No broker is known for 'http://x'" in said


def test_a_wrong_policy_is_told_with_its_file(tmp_path: Path) -> None:
    config = tmp_path / "conductor.yaml"
    config.write_text("policies: [rat_limit]\n")
    result = invoke("-c", str(config), "listen", "x")
    assert result.exit_code == 2
    assert f"error: file '{config}': policies[0] = 'rat_limit' is not valid" in result.output


def test_verbose_shows_where_it_happened(tmp_path: Path) -> None:
    result = invoke("-v", "run", str(tmp_path / "missing.yaml"))
    assert result.exit_code == 2
    assert "Traceback" in result.output


def test_a_payload_is_read_from_standard_input(tmp_path: Path) -> None:
    result = invoke("publish", "conductor:broadcast", "--payload", "-", stdin="[]")
    assert result.exit_code == 2
    assert "'[]' is JSON, but not an object" in result.output


def test_ctrl_c_while_it_is_imported_shows_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name == "app":
                raise KeyboardInterrupt
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "conductor.cli.commands", Interrupting("conductor.cli.commands"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str, tmp_path: Path) -> None:
    """As the script that `--install-completion` writes asks for it, whatever shell runs the tests."""
    env = environment(tmp_path) | {"_CONDUCTOR_COMPLETE": f"complete_{shell}", "COMP_CWORD": "1"}
    env |= {"COMP_WORDS": "conductor di", "_TYPER_COMPLETE_ARGS": "conductor di"}
    env |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([COMMAND], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "dispatch" in done.stdout
    assert "publish" not in done.stdout
