"""Field types that several models share."""

from datetime import UTC, datetime
from operator import methodcaller
from typing import Annotated
from uuid import uuid4

from pydantic import AfterValidator, AwareDatetime, Field


def new_id() -> str:
    """Make a fresh id: a random UUID as text."""
    return str(uuid4())


def utc_now() -> datetime:
    """Tell the time, aware and in UTC."""
    return datetime.now(UTC)


# methodcaller runs without a Python frame: a message has a timestamp, and messages are many.
UtcDatetime = Annotated[AwareDatetime, AfterValidator(methodcaller("astimezone", UTC))]
"""An aware time, converted to UTC; a naive one is refused, because nobody can know what it meant."""

NonEmptyStr = Annotated[str, Field(min_length=1)]
