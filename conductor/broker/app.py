"""The Celery application: settings, tasks, and the worker that hosts agents."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import click
from celery import Celery

from conductor.broker import transport
from conductor.broker.addresses import Addresses, find_addresses
from conductor.core.config import ConductorConfig, load_config
from conductor.core.exceptions import ConfigurationError
from conductor.core.tls import read_tls, without_tls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conductor.broker.node import NodeWorker
    from conductor.broker.node_spec import AgentFactory

#: Seconds that a node's child has to connect and start its agents.
CHILD_START_LIMIT = 60.0


class ConductorApp(Celery):  # type: ignore[misc]
    """Celery with Conductor's configuration, which is looked at when it is first needed."""

    amqp_cls = "conductor.broker.task_messages:TaskMessages"
    control_cls = "conductor.broker.remote_control:RemoteControl"

    def __init__(
        self,
        name: str,
        *,
        config: ConductorConfig | None = None,
        addresses: Addresses | None = None,
        agents: Mapping[str, AgentFactory] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self._given_config = config
        self._given_addresses = addresses
        self.agents: Mapping[str, AgentFactory] = agents or {}
        self.node: NodeWorker | None = None
        self.add_defaults(self._settings)

    @cached_property
    def config(self) -> ConductorConfig:
        """Conductor's configuration."""
        return self._given_config or load_config()

    @cached_property
    def addresses(self) -> Addresses:
        """The servers; ConfigurationError, code NO_BROKER or NO_REDIS, when there are none."""
        return self._given_addresses or find_addresses(self.config)

    @cached_property
    def Worker(self) -> type[NodeWorker]:  # noqa: N802 - Celery's name
        """The class of worker that `celery worker` starts."""
        return self.subclass_with_self("conductor.broker.node:NodeWorker", name="Worker")  # type: ignore[no-any-return]

    def _settings(self) -> dict[str, Any]:
        try:
            return settings(self.config, self.addresses)
        except ConfigurationError as error:
            # For `celery inspect`, `celery flower` and the like: a sentence instead of a stack trace.
            raise NotConfiguredError(error.message) from error


class NotConfiguredError(click.ClickException):
    """A configuration that Celery's command line cannot work with; it prints the sentence and ends."""


def create_app(
    config: ConductorConfig | None = None,
    agents: Mapping[str, AgentFactory] | None = None,
    *,
    addresses: Addresses | None = None,
    set_as_current: bool = True,
) -> ConductorApp:
    """Make the Celery application; it connects to nothing until it is used.

    `agents` are those that `celery worker --agent NAME` knows by name. Without `config` the environment and
    `conductor.yaml` are read when Celery first needs a setting; `addresses` spare looking for the servers.
    """
    from conductor.broker import node_control, tasks
    from conductor.broker.node_heartbeat import AgentHeartbeat
    from conductor.broker.node_intake import RequestIntake
    from conductor.broker.node_metrics import ShowMetrics
    from conductor.broker.node_pacing import EventPacing

    app = ConductorApp(
        "conductor", config=config, addresses=addresses, agents=agents, set_as_current=set_as_current
    )
    node_control.register()
    tasks.register(app)
    app.user_options["worker"].add(
        click.Option(
            ("--agent",),
            metavar="NAME",
            help="The agent to host: a known name, or package.module:Class. Default: one of each known.",
        )
    )
    app.steps["worker"].update((AgentHeartbeat, ShowMetrics))
    app.steps["consumer"].update((RequestIntake, EventPacing))
    return app


def settings(config: ConductorConfig, addresses: Addresses) -> dict[str, Any]:
    """Give Celery's settings for these servers."""
    return {
        **_broker_settings(config, addresses),
        **_backend_settings(config, addresses),
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": "conductor.tasks",
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_track_started": True,
        "worker_send_task_events": True,
        "worker_consumer": "conductor.broker.node_consumer:NodeConsumer",
        "worker_pool": "prefork",
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_proc_alive_timeout": CHILD_START_LIMIT,
        "worker_enable_remote_control": True,
        # Else Celery would send what is to wait by other routing keys, which are signed.
        "worker_detect_quorum_queues": False,
        # A task whose broker connection is gone cannot be acknowledged and is delivered again: it must not
        # go on here while another node starts it.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "control_exchange": "conductor.pidbox",
        "event_exchange": "conductor.celeryev",
        "event_queue_prefix": "conductor.celeryev",
    }


def _broker_settings(config: ConductorConfig, addresses: Addresses) -> dict[str, Any]:
    url, work = addresses.broker_url, config.work
    options = transport.transport_options(url)
    if transport.is_rabbitmq(url):
        options |= {
            "confirm_publish": True,
            "keep_after": work.visibility_timeout,
            "keep_interval": work.touch_interval,
        }
    else:
        options |= {
            "visibility_timeout": work.visibility_timeout,
            "touch_interval": work.touch_interval,
            "unacked_restore_interval": work.restore_interval,
            "unacked_restore_throttle": 1,
            "socket_keepalive": True,
            "socket_connect_timeout": config.bus.connect_timeout,
        }
    return {
        "broker_url": transport.broker_url(url),
        "broker_transport": transport.transport_name(url),
        "broker_use_ssl": transport.tls_settings(url),
        "broker_transport_options": options,
        "broker_connection_retry_on_startup": True,
        "broker_connection_retry": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": config.bus.connect_timeout,
    }


def _backend_settings(config: ConductorConfig, addresses: Addresses) -> dict[str, Any]:
    url = addresses.redis_url
    return {
        "result_backend": _backend_url(without_tls(url)),
        "redis_backend_use_ssl": read_tls(url),
        "result_expires": config.redis.result_expires_seconds,
        "result_extended": True,
        "redis_socket_connect_timeout": config.bus.connect_timeout,
        "redis_retry_on_timeout": True,
    }


def _backend_url(url: str) -> str:
    """Choose our backend; a Unix socket is redis+socket:///path?virtual_host=1 to it, not unix:///path?db=1."""
    if url.startswith("unix://"):
        url = "socket://" + url.removeprefix("unix://").replace("db=", "virtual_host=")
    return f"conductor.broker.backend:ResultBackend+{url}"
