"""The nodes: whether there are any, and whether they agree with each other and with this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from conductor.broker.app import create_app
from conductor.broker.liveness import heartbeat_age, heartbeat_limit, lives
from conductor.broker.node_control import DESCRIBE
from conductor.cli.doctor.clocks import check_clock
from conductor.cli.doctor.findings import Finding, ok, problem, warning
from conductor.core.enums import AgentStatus
from conductor.core.versions import installed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.broker.addresses import Addresses
    from conductor.core.config import ConductorConfig
    from conductor.core.state import AgentState

#: Seconds that nodes have to answer.
ANSWER_SECONDS = 2.0

Descriptions = dict[str, dict[str, Any]]


def ask_nodes(config: ConductorConfig, addresses: Addresses) -> Descriptions:
    """Ask all nodes what they are, and note how their clocks differ; blocks for two seconds."""
    app = create_app(config, addresses=addresses, set_as_current=False)
    asked = time.time()
    replies = app.control.broadcast(DESCRIBE, reply=True, timeout=ANSWER_SECONDS)
    ended = time.time()
    found: Descriptions = {}
    for reply in replies or ():
        for node, description in reply.items():
            if isinstance(description, dict) and "clock" in description:
                clock = float(description["clock"])
                # When in that time it answered is not known.
                ahead = clock - ended if clock > ended else min(clock - asked, 0.0)
                found[node] = description | {"ahead": ahead}
    return found


def check_agents(agents: list[AgentState], config: ConductorConfig) -> list[Finding]:
    """Judge what agents left in the store: whether they live, and the clocks of their heartbeats."""
    limit = heartbeat_limit(config)
    living = sorted(agent.agent_id for agent in agents if lives(agent, limit))
    gone = sorted(
        f"{agent.agent_id} worked on a task and sent {_silence(agent)}"
        for agent in agents
        if agent.agent_id not in living and agent.status is AgentStatus.RUNNING
    )
    findings = [_told_living(living)]
    if gone:
        findings.append(
            warning(
                "lost nodes",
                f"{'; '.join(gone)}: the node is gone, or its machine's clock is behind.",
                "Look at that machine. A task of its type's queue is taken over by another node of the type, "
                "if one runs; a task of its own queue waits for it.",
            )
        )
    ages = {agent.agent_id: heartbeat_age(agent) or 0 for agent in agents}
    for name, ahead in ((name, -age) for name, age in ages.items() if age < 0):
        clock = check_clock(f"clock of {name}", f"{name}, by its last heartbeat,", ahead, config.work)
        if clock.advice:
            findings.append(clock)
    return findings


def _silence(agent: AgentState) -> str:
    age = heartbeat_age(agent)
    return "no heartbeat ever" if age is None else f"no heartbeat for {age:.0f} s"


def _told_living(living: list[str]) -> Finding:
    if living:
        return ok("nodes", f"Agents that live: {', '.join(living)}.")
    return warning(
        "nodes",
        "No agent lives: what is dispatched waits.",
        "Start nodes with 'conductor up', or with 'celery -A workers worker --agent NAME'.",
    )


def check_nodes(nodes: Descriptions, config: ConductorConfig) -> list[Finding]:
    """Hold what nodes say of themselves against this machine and against each other."""
    if not nodes:
        return []
    here = installed()
    findings: list[Finding] = []
    for node, description in sorted(nodes.items()):
        findings += _versions(node, description["versions"], here)
        clock = check_clock(f"clock of {node}", f"node {node}", description["ahead"], config.work)
        if clock.advice:
            findings.append(clock)
    if not findings:
        text = f"Versions and clocks are those of this machine: {', '.join(sorted(nodes))}."
        findings.append(ok("nodes agree", text))
    return [*findings, _visibility(nodes, config)]


def _versions(node: str, theirs: Mapping[str, str], here: Mapping[str, str]) -> list[Finding]:
    other = [f"{name} {theirs[name]} (here {here[name]})" for name in here if theirs.get(name) != here[name]]
    if not other:
        return []
    return [
        warning(
            f"versions of {node}",
            f"Node {node} runs {', '.join(other)}.",
            "Install the same versions on all machines, and start its node again.",
        )
    ]


def _visibility(nodes: Descriptions, config: ConductorConfig) -> Finding:
    """Whoever has the shortest timeout takes tasks from those that touch them less often."""
    check = "settings of nodes"
    timeouts = {node: float(found["visibility_timeout"]) for node, found in nodes.items()}
    touches = {node: float(found["touch_interval"]) for node, found in nodes.items()}
    hasty, lazy = min(timeouts, key=timeouts.__getitem__), max(touches, key=touches.__getitem__)
    advice = "Give all nodes the same work.visibility_timeout and work.touch_interval, and start them again."
    if timeouts[hasty] < 2 * touches[lazy]:
        return problem(
            check,
            f"Node {hasty} takes over what nobody touched for {timeouts[hasty]:g} s, and node {lazy} touches "
            f"its tasks only every {touches[lazy]:g} s: tasks that take longer are started twice.",
            advice,
        )
    mine = (config.work.visibility_timeout, config.work.touch_interval)
    other = [node for node in nodes if (timeouts[node], touches[node]) != mine]
    if other:
        node = other[0]
        return warning(
            check,
            f"Node {node} has a visibility timeout of {timeouts[node]:g} s and touches every "
            f"{touches[node]:g} s; here it is {mine[0]:g} s and {mine[1]:g} s.",
            advice,
        )
    return ok(check, f"All have a visibility timeout of {mine[0]:g} s and touch every {mine[1]:g} s.")
