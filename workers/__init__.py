"""The agents that come with Conductor."""
