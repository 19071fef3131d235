"""The documents are a site that builds without a warning, and has all of them."""

import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import conductor
from conductor import testing

DOCS = Path(__file__).parents[1] / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"
#: Public, and not in `conductor` itself.
ELSEWHERE = [
    "conductor.broker.kombu_bus.KombuMessageBus",
    "conductor.core.channels",
    "conductor.core.channels.agent_channel",
    "conductor.core.channels.parse_channel",
    "conductor.orchestration.error_handler.CircuitBreaker",
    "conductor.orchestration.error_handler.CircuitBreakerState",
    "conductor.orchestration.error_handler.ErrorAction",
    "conductor.orchestration.error_handler.RetryPolicy",
    "conductor.orchestration.workflow_engine.PHASE_AGENT_TYPES",
    "conductor.store.redis_state.RedisStateManager",
    *(f"conductor.testing.{name}" for name in testing.__all__),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    # A machine without a network has to do.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", CONFIG, "-d", directory]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    navigation = CONFIG.read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": ([-a-z]+)\.md$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md"))
    assert {f"{name}.html" for name in listed} <= {page.name for page in site.glob("*.html")}


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(https?:)?//[^>]*>")
    for page in site.glob("*.html"):
        assert not loads.search(page.read_text()), page.name


def test_the_reference_has_every_public_name_and_what_it_has(site: Path) -> None:
    ids = set(re.findall(r'<h\d id="([\w.]+)"', (site / "reference.html").read_text()))
    public = [f"{conductor._HOME[name]}.{name}" for name in conductor.__all__] + ELSEWHERE
    wanted = {f"{path}.{member}" for path in public for member in members(pkgutil.resolve_name(path))}
    assert "conductor.core.enums.TaskStatus.PENDING" in wanted
    assert "conductor.core.messages.AgentMessage.ttl_seconds" in wanted
    assert sorted({*public, *wanted} - ids) == []


def members(thing: object) -> set[str]:
    """Name what a class has itself that users see: members of enumerations, fields, methods, properties."""
    if not isinstance(thing, type):
        return set()
    names = {*vars(thing), *inspect.get_annotations(thing)}
    return {name for name in names if not name.startswith("_") and name != "model_config"}
