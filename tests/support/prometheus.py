"""A Prometheus that scrapes what a test starts."""

import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

REQUIRED = "CONDUCTOR_TEST_REQUIRE_PROMETHEUS"

SETTINGS = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: conductor
    static_configs: [{{targets: [{target}]}}]
"""


def skip_without() -> None:
    """Skip the test where there is no Prometheus, or fail it where there has to be one."""
    if shutil.which("prometheus") and shutil.which("promtool"):
        return
    if os.environ.get(REQUIRED) == "1":
        pytest.fail("prometheus and promtool are required here, and are not installed")
    pytest.skip("there is no prometheus with promtool here")


class Prometheus:
    """One that runs, and the words of its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """What the API answers; AssertionError with what it says of a query that is none."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """The samples that a query gives now, each with its labels."""
        found = self.get("query", query=query)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def values(self, query: str, label: str) -> dict[str, float]:
        """The same by one label."""
        return {labels[label]: value for labels, value in self.ask(query)}


@contextlib.contextmanager
def prometheus(directory: Path, metrics_url: str, rules: Path) -> Iterator[Prometheus]:
    """A Prometheus with these rules that has scraped a URL."""
    target, port = metrics_url.partition("//")[2].partition("/")[0], free_port()
    settings, address = directory / "prometheus.yml", f"127.0.0.1:{port}"
    settings.write_text(SETTINGS.format(rules=json.dumps(str(rules)), target=json.dumps(target)))
    command = ["prometheus", f"--config.file={settings}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={directory / 'storage'}", "--log.level=warn"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    server = Prometheus(f"http://{address}")

    def scrapes() -> bool:
        assert process.poll() is None, (directory / "prometheus.log").read_text()
        with contextlib.suppress(OSError, AssertionError):
            return server.ask("count_over_time(up[1m]) > 2 and up == 1") != []
        return False

    try:
        wait_until_sync(scrapes, timeout=60, interval=0.2)
        yield server
    finally:
        process.terminate()
        process.wait(30)
