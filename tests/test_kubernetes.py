"""The manifests for Kubernetes fit together and to Conductor, and their probes work."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conductor import Conductor
from conductor.broker.topology import type_queue
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType
from conductor.core.models import TaskDefinition
from tests.support.cli import environment
from tests.support.metrics import Scrape
from tests.support.waiting import wait_until_sync
from workers.agents import AGENTS


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((Path(__file__).parents[1] / "docs" / "kubernetes" / name).read_text()))


def test_the_manifest_fits_together() -> None:
    deployment, budget = read("review.yaml")
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


def test_a_node_has_longer_to_end_than_a_probe_and_the_default_task_take() -> None:
    pod = read("review.yaml")[0]["spec"]["template"]["spec"]
    [node] = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > TaskDefinition.model_fields["timeout_seconds"].default
    for probe in (node["readinessProbe"], node["livenessProbe"]):
        [waits] = re.findall(r"--timeout (\d+)", probe["exec"]["command"][-1])
        assert int(waits) < probe["timeoutSeconds"] <= probe["periodSeconds"]


def scaled_by() -> tuple[str, str]:
    """The metric that the scaling asks for, and its queue."""
    [scaling] = read("review-scaling.yaml")
    [trigger] = scaling["spec"]["triggers"]
    [(metric, queue)] = re.findall(r'(\w+)\{queue="(.*?)"\}', trigger["metadata"]["query"])
    return metric, queue


def test_the_scaling_is_of_the_deployment_and_by_the_queue_of_its_type() -> None:
    deployment, budget = read("review.yaml")
    [scaling] = read("review-scaling.yaml")
    assert (scaling["apiVersion"], scaling["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert scaling["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaling["spec"]["minReplicaCount"] > budget["spec"]["minAvailable"]
    [node] = deployment["spec"]["template"]["spec"]["containers"]
    agent = node["command"][node["command"].index("--agent") + 1]
    assert scaled_by()[1] == type_queue(AgentType(agent)).name


def test_the_metrics_are_found_by_their_service_and_by_prometheus() -> None:
    deployment, service = read("metrics.yaml")
    kinds = [(one["apiVersion"], one["kind"]) for one in (deployment, service)]
    assert kinds == [("apps/v1", "Deployment"), ("v1", "Service")]
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    [container] = template["spec"]["containers"]
    [port] = container["ports"]
    assert service["spec"]["ports"] == [
        {"name": "metrics", "port": port["containerPort"], "targetPort": port["name"]}
    ]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    assert container["command"][-2:] == ["--port", str(port["containerPort"])]
    assert container["readinessProbe"]["tcpSocket"]["port"] == port["name"]
    [node] = read("review.yaml")[0]["spec"]["template"]["spec"]["containers"]
    urls = [one for one in container["env"] if one["name"].endswith("_URL")]
    assert urls == [one for one in node["env"] if one["name"].endswith("_URL")]
    assert len(urls) == 2


def test_the_command_of_the_metrics_serves_what_the_scaling_asks_for(valkey_url: str, tmp_path: Path) -> None:
    [container] = read("metrics.yaml")[0]["spec"]["template"]["spec"]["containers"]
    url = f"{valkey_url.rpartition('/')[0]}/4"
    env = environment(tmp_path) | {"CONDUCTOR_BROKER_URL": url, "CONDUCTOR_REDIS__URL": url}
    env |= {one["name"]: one["value"] for one in container["env"] if "value" in one}
    env |= {
        "CONDUCTOR_DATA_DIR": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [*container["command"][:-1], "0"]
    metric, queue = scaled_by()

    async def dispatch() -> None:
        async with Conductor(ConductorConfig(broker_url=url, redis={"url": url})) as conductor:
            await conductor.dispatch(TaskDefinition(name="waits", assigned_to=AgentType.REVIEW))

    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as exporter:
        try:
            [(host, port)] = re.findall(r"//(.*):(\d+)/metrics$", exporter.stdout.readline())
            assert host == "0.0.0.0"
            asyncio.run(dispatch())
            assert Scrape(f"http://127.0.0.1:{port}/metrics").value(metric, queue=queue) == 1
        finally:
            exporter.terminate()


@pytest.mark.parametrize("kind", ["readinessProbe", "livenessProbe"])
def test_the_probe_of_the_manifest_tells_a_node_that_runs_from_one_that_does_not(
    kind: str, valkey_url: str, tmp_path: Path
) -> None:
    [container] = read("review.yaml")[0]["spec"]["template"]["spec"]["containers"]
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
        command = container[kind]["exec"]["command"]
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
