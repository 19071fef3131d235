"""Nodes as containers, where a Docker engine exists; nothing here is imported without the wish for it."""

from typing import Any

import psutil
from pytest_celery import CeleryTestContainer


class NodeContainer(CeleryTestContainer):  # type: ignore[misc]
    """A container that says when it is ready, on the host's network: it has neither an address nor ports."""

    def __init__(self, container: Any, prompt: str) -> None:
        super().__init__(container)
        self._prompt = prompt

    @property
    def ready_prompt(self) -> str:
        """What it prints when it is ready."""
        return self._prompt

    @property
    def celeryconfig(self) -> dict[str, str]:
        """Nothing: the environment says it all."""
        return {}

    @property
    def pid(self) -> int:
        """The id of its first process, on the host."""
        self._container.reload()
        return int(self._container.attrs["State"]["Pid"])

    def children(self) -> list[int]:
        """The ids of the processes that the first one started."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ready(self) -> bool:
        """Wait until it says that it is ready."""
        self._container.reload()
        return bool(self._wait_ready())

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end and give the exit status."""
        return int(self._container.wait(timeout=timeout)["StatusCode"])

    def teardown(self) -> None:
        """End and remove it."""
        self._container.remove(force=True)


def run_container(
    image: str, name: str, command: list[str], environment: dict[str, str], prompt: str
) -> NodeContainer:
    """Start `python <command>` in an image with Conductor and its tests on the path.

    /tmp is shared: agents write their notes where the test reads them.
    """
    import docker

    settings = {key: value for key, value in environment.items() if key.startswith("CONDUCTOR_")}
    container = docker.from_env().containers.run(
        image,
        ["python", *command],
        name=name,
        environment=settings,
        network_mode="host",
        pid_mode="host",
        volumes={"/tmp": {"bind": "/tmp", "mode": "rw"}},
        detach=True,
    )
    return NodeContainer(container, prompt)
