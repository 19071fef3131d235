"""The README's programs do what it says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from conductor.store.embedded import EmbeddedServer
from tests.support.cli import background, conductor, environment
from tests.support.waiting import wait_until_sync

ROOT = Path(__file__).parent.parent
PROGRAM, AGENT = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    data_dir = tmp_path_factory.mktemp("readme") / "data"
    with background(data_dir, "up", "--agents", "review", "--json", cwd=ROOT) as up:
        up.wait_for_event(event="ready")
        yield data_dir


def test_the_ten_lines_get_a_review(data: Path, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(PROGRAM)
    run = [sys.executable, str(tmp_path / "look.py")]
    done = subprocess.run(
        run, env=environment(data), cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"completed \{'.*': \d+.*\}\n", done.stdout)


def test_an_agent_of_ones_own_is_hosted_beside_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "shouter.py").write_text(AGENT)
    # The script, as a user types it: unlike `python -m celery` it does not look in the working directory.
    celery = str(Path(sys.executable).with_name("celery"))
    host = [celery, "-A", "workers", "worker", "--agent", "shouter:Shouter"]
    node = subprocess.Popen([*host, "-n", "shouter-1@%h"], env=environment(data), cwd=tmp_path)
    try:
        with redis.Redis.from_url(EmbeddedServer.running(data) or "") as server:
            wait_until_sync(
                lambda: (
                    node.poll() is not None or server.hexists("conductor:agent:shouter-1", "last_heartbeat")
                ),
                timeout=60,
            )
        assert node.poll() is None, "the node ended"
        said = ["dispatch", "--agent", "shouter-1", "--input", "text=hello", "--json"]
        done = conductor(data, *said)
    finally:
        node.terminate()
        node.wait(60)
    assert done.returncode == 0, done.stderr
    assert '"HELLO"' in done.stdout
