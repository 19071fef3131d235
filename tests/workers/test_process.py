"""Tools end with whoever waits for them, and so does all they started."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until
from workers.agents import process

# A tool with a child in its own group, a child in a session of its own, and an orphaned grandchild.
FAMILY = """\
import os, subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleeper), subprocess.Popen(sleeper, start_new_session=True)]
daemon = (
    "import subprocess, sys; quiet = dict(stdout=-3, stderr=-3, start_new_session=True);"
    "print(subprocess.Popen(sys.argv[1:], **quiet).pid)"
)
orphan = subprocess.run([sys.executable, "-c", daemon, *sleeper], capture_output=True, text=True).stdout
open("family.part", "w").write(" ".join(map(str, [os.getpid(), *(c.pid for c in children), orphan])))
os.rename("family.part", "family")
time.sleep(float(sys.argv[1]))
"""


def family(root: Path) -> list[int]:
    file = root / "family"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def alive(pids: list[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


async def test_output_and_code_of_a_command(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = await process.run([sys.executable, "-c", code], cwd=tmp_path)
    assert (done.code, done.stdout, done.stderr, done.truncated) == (3, "out\n", "err\n", False)


async def test_the_end_of_long_output_is_kept(tmp_path: Path) -> None:
    done = await process.run(
        [sys.executable, "-c", "print('x' * 10_000_000 + 'the end')"], cwd=tmp_path, limit=10
    )
    assert done.stdout == "xxthe end\n"
    assert done.truncated


async def test_a_signal_and_a_missing_command_are_told(tmp_path: Path) -> None:
    done = await process.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], cwd=tmp_path)
    assert done.signal_name == "SIGSEGV"
    done = await process.run(["no-such-command"], cwd=tmp_path)
    assert (done.code, done.stderr) == (127, "cannot start no-such-command: No such file or directory\n")


async def test_cancelling_ends_the_whole_family(tmp_path: Path) -> None:
    running = asyncio.create_task(process.run([sys.executable, "-c", FAMILY, "600"], cwd=tmp_path))
    pids = await wait_until(lambda: family(tmp_path))
    assert len(alive(pids)) == 4
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert alive(pids) == []


async def test_cancelling_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    for rounds in range(5):
        running = asyncio.create_task(process.run([sys.executable, "-c", FAMILY, "600"], cwd=tmp_path))
        for _ in range(rounds):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    left = [p for p in psutil.Process().children(recursive=True) if str(process.SUPERVISOR) in p.cmdline()]
    assert left == []


async def test_what_a_finished_command_left_running_is_ended(tmp_path: Path) -> None:
    done = await process.run([sys.executable, "-c", FAMILY, "0"], cwd=tmp_path)
    assert done.code == 0
    assert alive(family(tmp_path)) == []


async def test_the_death_of_the_asker_ends_the_whole_family(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from workers.agents import process\n"
        "asyncio.run(process.run([sys.executable, '-c', sys.argv[1], '600'], cwd=Path(sys.argv[2])))"
    )
    asker = await asyncio.create_subprocess_exec(sys.executable, "-c", script, FAMILY, str(tmp_path))
    try:
        pids = await wait_until(lambda: family(tmp_path))
    finally:
        asker.kill()
        await asker.wait()
    await wait_until(lambda: not alive(pids))
