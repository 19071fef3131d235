"""Where Prometheus gets the numbers, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import start_http_server

from conductor.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry


class MetricsEndpoint:
    """`/metrics` of one address; answered in threads of its own, so that nothing waits for a scrape."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._server: tuple[WSGIServer, Thread] | None = None

    def start(self) -> str:
        """Listen, and give the URL; ConfigurationError, code METRICS_PORT, where that cannot be."""
        try:
            self._server = start_http_server(self._port, self._host, self._registry)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"metrics.port: {self._host}:{self._port} cannot be listened on "
                f"({getattr(error, 'strerror', None) or error}): set CONDUCTOR_METRICS__PORT to a free port, "
                "or to 0 for any that is free, and CONDUCTOR_METRICS__HOST to an address of this machine",
                "METRICS_PORT",
                {"host": self._host, "port": self._port},
            ) from error
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server[0].server_port}/metrics"

    def stop(self) -> None:
        """Free the port."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join()

    def forget(self) -> None:
        """Close what a fork copied, whose thread is in the other process."""
        if self._server is not None:
            self._server[0].socket.close()
            self._server = None
