"""The bus and the state manager as contracts, and what leads agents through work."""
