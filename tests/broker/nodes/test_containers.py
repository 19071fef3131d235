"""The two kinds of containers that nodes run in."""

from tests.support.containers import LocalContainer
from tests.support.docker import NodeContainer


def test_a_docker_container_offers_the_tests_what_a_local_process_does() -> None:
    wanted = {name for name in vars(LocalContainer) if not name.startswith("_")} - {"exit_code"}
    assert wanted <= set(dir(NodeContainer))
