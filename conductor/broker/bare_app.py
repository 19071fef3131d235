"""The Celery application without the agents that come with Conductor: `celery -A conductor.broker.bare_app`.

For nodes with agents of the user's, whose own `workers` may come first on the path.
"""

from conductor.broker.app import create_app

app = create_app()
