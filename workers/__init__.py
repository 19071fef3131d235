"""The agents that come with Conductor, and the Celery application that hosts them.

`celery -A workers worker --agent coding -n coding-1@%h` starts a node with one agent. `workers.app` is made
when it is first looked at: importing an agent does not import Celery.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conductor.broker.app import ConductorApp


@cache
def _app() -> "ConductorApp":
    from conductor.broker.app import create_app
    from workers.agents import AGENTS

    return create_app(agents=AGENTS)


def __getattr__(name: str) -> "ConductorApp":
    if name == "app":
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
