"""The quick start does what it says, and so does the manifest for Kubernetes."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from conductor.core.config import ConductorConfig
from tests.support.cli import background, conductor, environment
from tests.support.projects import write_files
from tests.support.waiting import wait_until_sync
from workers.agents import AGENTS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_quick_start_runs(tmp_path: Path) -> None:
    text = (DOCS / "quickstart.md").read_text()
    files = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', text, re.DOTALL))
    write_files(tmp_path, files)
    [up] = re.findall(r"^\$ conductor (up .*)", text, re.MULTILINE)
    [(dispatch, shown)] = re.findall(r"^\$ conductor (dispatch .*)\n([^`]+)```", text, re.MULTILINE)
    [printed] = re.findall(r"It prints `(.*?)`", text)
    data = tmp_path / "data"
    with background(data, *up.split(), "--json", cwd=tmp_path) as agents:
        agents.wait_for_event(event="ready")
        done = conductor(data, *dispatch.split())
        assert re.sub(r"\d+\.\d s", "N s", done.stdout) == re.sub(r"\d+\.\d s", "N s", shown)
        asked = subprocess.run(
            [sys.executable, "ask.py"], env=environment(data), cwd=tmp_path, capture_output=True, text=True,
            timeout=90, check=False,
        )  # fmt: skip
    assert asked.stdout == f"{printed}\n", asked.stderr


def test_the_manifest_fits_together() -> None:
    deployment, budget = yaml.safe_load_all((DOCS / "kubernetes" / "review.yaml").read_text())
    kinds = [(one["apiVersion"], one["kind"]) for one in (deployment, budget)]
    assert kinds == [("apps/v1", "Deployment"), ("policy/v1", "PodDisruptionBudget")]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    pod = deployment["spec"]["template"]["spec"]
    [node] = pod["containers"]
    assert node["command"][node["command"].index("--agent") + 1] in AGENTS
    mounts = {mount["name"] for mount in node["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    for name in (one["name"] for one in node["env"] if one["name"].startswith("CONDUCTOR_")):
        section, _, field = name.removeprefix("CONDUCTOR_").lower().partition("__")
        model = ConductorConfig.model_fields[section].annotation
        assert not field or field in model.model_fields


def test_the_probe_of_the_manifest_tells_a_node_that_runs_from_one_that_does_not(
    valkey_url: str, tmp_path: Path
) -> None:
    [container] = next(yaml.safe_load_all((DOCS / "kubernetes" / "review.yaml").read_text()))["spec"][
        "template"
    ]["spec"]["containers"]
    pod = "conductor-review-1"
    scripts = str(Path(sys.executable).parent)
    env = environment(tmp_path) | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "POD_NAME": pod,
        # What Kubernetes gives a pod for a name, and celery takes for %h.
        "HOSTNAME": socket.gethostname(),
        "CONDUCTOR_BROKER_URL": f"{valkey_url.rpartition('/')[0]}/5",
    }

    def probe() -> int:
        command = container["livenessProbe"]["exec"]["command"]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, timeout=90).returncode

    assert probe() != 0
    command = [word.replace("$(POD_NAME)", pod) for word in container["command"]]
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until_sync(
            lambda: node.poll() is not None or "is ready:" in (tmp_path / "log").read_text(), timeout=90
        )
        assert probe() == 0, (tmp_path / "log").read_text()
    finally:
        node.terminate()
        node.wait(60)
