"""Durable, observable, distributed work for asyncio agents."""
