"""State in Redis, and the embedded server."""
