"""All checks, one after the other, and how their findings are shown."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import redis
from amqp.exceptions import NotAllowed
from redis.exceptions import RedisError
from rich.table import Table
from rich.text import Text

from conductor.broker import transport
from conductor.broker.addresses import find_addresses
from conductor.broker.liveness import heartbeat_limit, lives
from conductor.cli.doctor.findings import Finding, Level, ok, problem
from conductor.cli.doctor.local import check_data_dir, check_settings, check_versions
from conductor.cli.doctor.nodes import Descriptions, ask_nodes, check_agents, check_nodes
from conductor.cli.doctor.rabbitmq_server import check_queue_types, check_rabbitmq
from conductor.cli.doctor.redis_server import check_redis
from conductor.core.config import mask_url
from conductor.core.exceptions import ConductorError, ConfigurationError
from conductor.core.tls import explain_tls
from conductor.store.redis_state import RedisStateManager

if TYPE_CHECKING:
    from pathlib import Path

    from conductor.broker.addresses import Addresses
    from conductor.cli.output import Output
    from conductor.core.config import ConductorConfig
    from conductor.core.state import AgentState

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red", Level.CANNOT_CHECK: "dim"}
#: Seconds that a server has to answer.
PATIENCE = 5.0


async def examine(config: ConductorConfig, file: Path | None, output: Output) -> int:
    """Check everything that can be reached and show it; the exit code, 1 where there is a problem."""
    findings = [*check_versions(), *check_settings(file), *check_data_dir(config)]
    return show([*findings, *await _check_servers(config)], output)


def refuse(error: Exception, output: Output) -> int:
    """Show what can be said where the settings are not valid."""
    text = error.message if isinstance(error, ConductorError) else str(error)
    return show([*check_versions(), problem("settings", _sentence(text), "Correct it there.")], output)


async def _check_servers(config: ConductorConfig) -> list[Finding]:
    try:
        addresses = await asyncio.to_thread(find_addresses, config)
    except ConfigurationError as error:
        first, _, advice = error.message.partition(": ")
        return [problem("servers", _sentence(first), _sentence(advice[:1].upper() + advice[1:]))]
    findings = await asyncio.to_thread(_check_broker, config, addresses)
    broker_is_there = findings[0].level is Level.OK
    if addresses.redis_url != addresses.broker_url:
        findings += await asyncio.to_thread(_check_store, config, addresses)
    agents = await _agents(config, addresses)
    if broker_is_there and transport.is_rabbitmq(addresses.broker_url):
        names = [agent.agent_id for agent in agents or ()]
        findings.append(await asyncio.to_thread(_check_queues, config, addresses, names))
    if agents is None:
        return findings
    findings += check_agents(agents, config)
    if broker_is_there and any(lives(agent, heartbeat_limit(config)) for agent in agents):
        nodes = await asyncio.to_thread(_answers, config, addresses)
        findings += check_nodes(nodes, config)
    return findings


async def _agents(config: ConductorConfig, addresses: Addresses) -> list[AgentState] | None:
    """Give what the store knows, None where it cannot be read, which the checks of the server have told."""
    prefix = config.redis.key_prefix
    try:
        async with RedisStateManager(addresses.redis_url, prefix, retry_seconds=PATIENCE) as state:
            return await state.list_agent_states()
    except ConductorError:
        return None


def _answers(config: ConductorConfig, addresses: Addresses) -> Descriptions:
    try:
        return ask_nodes(config, addresses)
    except Exception:  # noqa: BLE001 - what cannot be sent is told by the checks of the broker
        return {}


def _check_broker(config: ConductorConfig, addresses: Addresses) -> list[Finding]:
    url = addresses.broker_url
    connection = transport.kombu_connection(url, connect_timeout=config.bus.connect_timeout)
    try:
        try:
            transport.connect(connection, PATIENCE)
            channel = connection.default_channel
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            return [_unreachable("broker", url, error)]
        reached = ok("broker", f"{mask_url(url)} answers.")
        if transport.is_rabbitmq(url):
            return [reached, *check_rabbitmq(connection, config)]
        return [reached, *check_redis(channel.client, "Redis", config, is_broker=True)]
    except Exception as error:  # noqa: BLE001
        return [_unreachable("broker", url, error)]
    finally:
        transport.disconnect(connection)


def _check_queues(config: ConductorConfig, addresses: Addresses, agent_ids: list[str]) -> Finding:
    url = addresses.broker_url
    connection = transport.kombu_connection(url, connect_timeout=config.bus.connect_timeout)
    try:
        transport.connect(connection, PATIENCE)
        return check_queue_types(connection, agent_ids)
    except Exception as error:  # noqa: BLE001
        return _unreachable("broker", url, error)
    finally:
        transport.disconnect(connection)


def _check_store(config: ConductorConfig, addresses: Addresses) -> list[Finding]:
    url, limit = addresses.redis_url, config.bus.connect_timeout
    client = redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=limit)
    try:
        client.ping()
        reached = ok("state store", f"{mask_url(url)} answers.")
        return [reached, *check_redis(client, "state Redis", config, is_broker=False)]
    except (RedisError, OSError) as error:
        return [_unreachable("state store", url, error)]
    finally:
        client.close()


def _unreachable(check: str, url: str, error: Exception) -> Finding:
    variable = "CONDUCTOR_BROKER_URL" if check == "broker" else "CONDUCTOR_REDIS__URL"
    if trouble := explain_tls(error, url):
        return problem(
            check, f"{mask_url(url)} cannot be used: {trouble.what}.", f"In {variable}: {trouble.advice}."
        )
    reason = str(error).strip() or type(error).__name__
    advice = f"Start the server, or correct address and password: {variable}."
    if isinstance(error, NotAllowed):
        name = unquote(urlsplit(url).path[1:]) or "/"
        advice = f"Make the virtual host, 'rabbitmqctl add_vhost {name}', or correct its name: {variable}."
    return problem(check, f"{mask_url(url)} cannot be used: {reason.rstrip('.')}.", advice)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def show(findings: list[Finding], output: Output) -> int:
    """Show what was found; the exit code."""
    counts = {level.value: sum(f.level is level for f in findings) for level in Level}
    output.emit({"findings": [asdict(finding) for finding in findings], "counts": counts}, indent=2)
    if not output.as_json:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for finding in findings:
            table.add_row(Text(finding.level.value, _STYLES[finding.level]), finding.check, finding.meaning)
            if finding.advice:
                table.add_row("", "", f"→ {finding.advice}")
        output.show(table)
        output.say(", ".join(f"{number} {word}" for word, number in counts.items()))
    return int(counts[Level.PROBLEM] > 0)
