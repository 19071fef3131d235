"""What the documents give a Prometheus, its dashboard and its alerts, asked of a real one."""

import contextlib
import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import background
from tests.support.metrics import Scrape, wait_for
from tests.support.places import Place, own_servers
from tests.support.projects import write_files
from tests.support.prometheus import Prometheus, prometheus, skip_without
from tests.support.waiting import wait_until_sync

GRAFANA = Path(__file__).parents[2] / "docs" / "grafana"
RULES = GRAFANA / "alerts.yml"

AGENTS = """
import datetime

from conductor import AgentMessage, ConductorError, MessageType, TaskContext, TaskDefinition, agent

tries = 0


def a_message(**fields):
    return AgentMessage(message_type=MessageType.STATUS_UPDATE, sender_id="busy", **fields)


@agent("coding")
async def busy(data: dict, context: TaskContext) -> dict:
    global tries
    do = data["do"]
    if do == "fail":
        raise ValueError("no")
    if do == "later":
        tries += 1
        if tries < 3:
            raise ConductorError("not now", "TRANSIENT_ERROR")
    if do == "publish":
        for number in range(7):
            await context.bus.publish("conductor:broadcast", a_message(payload={"number": number}))
    if do == "ask":
        task = TaskDefinition(name="asked", input_data={"do": "work"})
        question = AgentMessage(
            message_type=MessageType.TASK_ASSIGNMENT,
            sender_id="busy-1",
            payload={"task": task.model_dump(mode="json")},
        )
        await context.bus.request("conductor:agent:busy-2", question)
    if do == "lose":
        long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
        await context.bus.publish("conductor:broadcast", a_message(ttl_seconds=1, timestamp=long_ago))
        try:
            await context.bus.publish("conductor:broadcast", a_message(payload={"much": "x" * 2_000_000}))
        except ConductorError as error:
            return {"code": error.error_code}
    return {}
"""
#: What is done, how often, and how it ends.
WORK = {"work": 4, "fail": 2, "later": 1, "publish": 1, "ask": 2, "lose": 1}


def queries() -> list[tuple[str, str]]:
    """Every query of the dashboard with its panel's title, as Grafana would ask it."""
    dashboard = json.loads((GRAFANA / "conductor.json").read_text())
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "5m"))
        for panel in panels
        for target in panel.get("targets", ())
    ]


def alerts() -> list[tuple[str, str]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module", params=["embedded", "rabbitmq"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen two nodes do WORK."""
    skip_without()
    directory = tmp_path_factory.mktemp("prometheus")
    settings: dict[str, Any] = {"errors": {"retry": {"initial_delay": 0.1}}}
    with contextlib.ExitStack() as stack:
        if request.param == "rabbitmq":
            addresses = stack.enter_context(own_servers(request.param, directory))
            settings |= {"broker_url": addresses.broker_url, "redis": {"url": addresses.redis_url}}
        write_files(directory, {"busy.py": AGENTS, "conductor.yaml": json.dumps(settings)})
        start = ["up", "--agents", "busy:busy", "--count", "2", "--metrics-port", "0", "--json"]
        up = stack.enter_context(background(directory / "data", *start, cwd=directory))
        url = up.wait_for_event(event="ready")["metrics_url"]
        found = stack.enter_context(prometheus(directory, url, RULES))
        place = Place(directory, up)
        for do, times in WORK.items():
            for _ in range(times):
                place.run("dispatch", "--agent", "busy-1", "-i", f"do={do}", code=int(do == "fail"))
        everything = sum(WORK.values()) + WORK["ask"]
        wait_for(url, everything, "conductor_tasks_total")
        wait_until_sync(lambda: (Scrape(url).value("conductor_messages_expired_total") or 0) > 0, timeout=30)
        total = "sum(conductor_tasks_total)"
        wait_until_sync(lambda: found.ask(f"{total} and {total} == {everything}"), timeout=30, interval=0.2)
        wait_until_sync(lambda: found.ask("conductor_messages_expired_total > 0"), timeout=30, interval=0.2)
        yield found


@pytest.mark.parametrize(("panel", "query"), queries())
def test_every_query_of_the_dashboard_is_answered(server: Prometheus, panel: str, query: str) -> None:
    samples = server.ask(query)
    assert samples, f"{panel!r} asks for what there is not"
    assert any(not math.isnan(value) for _, value in samples), f"{panel!r} shows no number"


def test_the_dashboard_shows_what_was_done(server: Prometheus) -> None:
    asked = dict(queries())
    done = sum(WORK.values()) - WORK["fail"] + WORK["ask"]  # who asks and who is asked
    expected = {"completed": done, "failed": WORK["fail"], "cancelled": 0}
    assert server.values("sum by (outcome) (conductor_tasks_total)", "outcome") == expected
    rates = server.values(asked["Tasks by outcome"], "outcome")
    assert {outcome: rate > 0 for outcome, rate in rates.items()} == {
        outcome: count > 0 for outcome, count in expected.items()
    }
    part = server.values(asked["Failed part of the tasks"], "agent_type")["coding"]
    assert part == pytest.approx(WORK["fail"] / (done + WORK["fail"]))
    retries = server.values('conductor_task_retries_total{code="TRANSIENT_ERROR"}', "agent_type")
    assert retries == {"coding": 2}
    assert server.values(asked["Retries"], "code")["TRANSIENT_ERROR"] > 0
    letters = server.values(asked["Dead letters by reason"], "reason")
    assert {reason for reason, count in letters.items() if count > 0} == {"rejected"}
    assert server.ask(asked["Dead letters waiting"])[0][1] == WORK["fail"]
    assert server.values(asked["Servers"], "component") == {"broker": 1, "state": 1}
    assert server.values(asked["Agents that live"], "agent_type")["coding"] == 2
    requests = server.values("sum by (outcome) (conductor_request_duration_seconds_count)", "outcome")
    assert {outcome: count for outcome, count in requests.items() if count} == {"answered": WORK["ask"]}
    assert server.values("sum by (channel) (conductor_messages_published_total)", "channel")["broadcast"] >= 7
    assert server.values(asked["Published"], "channel")["broadcast"] > 0
    depths = server.values(asked["Messages that wait"], "queue")
    assert (depths["conductor.dlq"], depths["conductor.type.coding"]) == (WORK["fail"], 0)


def test_the_alerts_are_rules_without_fault() -> None:
    skip_without()
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(alerts())} rules found" in done.stdout


def test_a_prometheus_evaluates_the_alerts(server: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]] | None:
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = wait_until_sync(evaluated, timeout=30, interval=0.2)
    assert rules is not None
    assert {rule["name"]: rule.get("lastError") for rule in rules} == {name: None for name, _ in alerts()}
    states = {rule["name"]: rule["state"] for rule in rules}
    assert states["ConductorDeadLetters"] == "firing"
    assert {name for name, state in states.items() if state != "inactive"} <= {
        *("ConductorDeadLetters", "ConductorMessagesRefused", "ConductorTasksFailing")
    }


@pytest.mark.parametrize(("alert", "query"), alerts())
def test_every_alert_asks_for_what_there_is(server: Prometheus, alert: str, query: str) -> None:
    server.ask(query)  # raises where it cannot be evaluated
    selectors = re.findall(r"conductor_\w+(?:\{[^}]*\})?", query)
    assert selectors
    for selector in selectors:
        assert server.ask(selector), f"{alert} asks for {selector}, and there is no such thing"


@pytest.mark.parametrize("query", ["conductor_task_total", 'conductor_tasks_total{outcome="done"}'])
def test_a_name_that_is_wrong_is_noticed(server: Prometheus, query: str) -> None:
    assert server.ask(query) == []
