"""Where spans go, and what a user is told who named a wrong place; in processes of their own."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from conductor.core.config import TracingConfig, load_config
from conductor.core.exceptions import ConfigurationError
from tests.support.cli import conductor, environment

NO_SDK = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name in ("opentelemetry.sdk", "opentelemetry.exporter"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without())
"""

PROGRAM = """
import sys
from conductor.core.config import TracingConfig
from conductor.core.tracing import find_tracing, span_of
from conductor.core.tracing_setup import configure_tracing

flush = configure_tracing(TracingConfig.model_validate_json(sys.argv[1]), "me")
with span_of("outer", "internal", {"a": 1, "nothing": None}), span_of("inner", "client", {}):
    pass
assert flush is None or flush()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def run(settings: dict[str, object], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        env=environment(Path("/nowhere")) | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_is_off_and_imports_nothing() -> None:
    done = run({})
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_console_gets_a_line_of_json_per_span() -> None:
    done = run({"exporter": "console", "service_name": "mine"})
    assert done.returncode == 0, done.stderr
    inner, outer = map(json.loads, done.stderr.splitlines())
    assert (inner["name"], outer["name"]) == ("inner", "outer")
    assert inner["parent_id"] == outer["context"]["span_id"]
    assert outer["attributes"] == {"a": 1}
    assert outer["resource"]["attributes"]["service.name"] == "mine"
    assert outer["resource"]["attributes"]["service.instance.id"] == "me"


def test_nothing_is_recorded_of_a_trace_that_is_not_sampled() -> None:
    assert run({"exporter": "console", "sample_ratio": 0}).stderr == ""


@pytest.mark.parametrize("path", ["", "/", "/v1/traces", "/collector"])
def test_otlp_goes_to_the_endpoint(path: str) -> None:
    posted: list[str] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            posted.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}{path}"
        done = run({"exporter": "otlp", "endpoint": endpoint})
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert posted == ["/collector/v1/traces" if path == "/collector" else "/v1/traces"]


def test_a_missing_sdk_is_told_with_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_SDK)
    done = run({"exporter": "otlp"}, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "tracing.exporter is 'otlp', for which OpenTelemetry's SDK is missing" in done.stderr
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in done.stderr


@pytest.mark.parametrize("exporter", ["jaeger", ":x", "x:", ""])
def test_a_wrong_word_is_told_with_the_right_ones(monkeypatch: pytest.MonkeyPatch, exporter: str) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(ValueError, match="exporter"):
        TracingConfig(exporter=exporter)


def test_a_command_tells_it_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "conductor.yaml"
    for exporter, said in (
        ("jaeger", "none of 'none', 'otlp', 'console'"),
        ("nobody.has:it", "tracing.exporter 'nobody.has:it' cannot be imported"),
        ("json:dumps", "tracing.exporter: json:dumps made no exporter"),
    ):
        file.write_text(f"tracing: {{exporter: '{exporter}'}}\n")
        done = conductor(tmp_path / "data", "-c", str(file), "dlq", "list")
        assert done.returncode == 2, done
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("tracing: {exporter: otlp, endpoint: 'http://me:hunter2@c:4318', sample_ratio: 2}\n")
    with pytest.raises(ConfigurationError, match="sample_ratio"):
        load_config(file)
    file.write_text("tracing: {exporter: otlp, endpoint: 'http://me:hunter2@c:4318'}\n")
    config = load_config(file)
    assert config.tracing.sample_ratio == 1
    assert "hunter2" not in repr(config)
