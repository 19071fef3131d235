"""The setting of how messages are signed."""

from typing import Self

from pydantic import Field, SecretStr, model_validator

from conductor.core.config_sections import Section
from conductor.core.fields import NonEmptyStr

#: Bytes; a shorter key could be guessed.
SHORTEST_KEY = 16


class SigningConfig(Section):
    """With which keys messages are signed and checked; off without keys. Dumps mask the keys."""

    keys: dict[NonEmptyStr, SecretStr] = Field(default_factory=dict, repr=False)
    """The secrets by their ids; all that are here are accepted."""
    key_id: NonEmptyStr | None = None
    """Which of them signs."""
    accept_unsigned: bool = False
    """Whether messages without a signature are taken; while signing is introduced."""
    window_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """How far the clocks of two machines may be apart, and how long an event may be under way."""

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        for name, key in self.keys.items():
            if len(key.get_secret_value().encode("utf-8", "surrogatepass")) < SHORTEST_KEY:
                raise ValueError(f"key {name!r} is shorter than {SHORTEST_KEY} bytes: make a random one")
        if (self.keys or self.key_id) and self.key_id not in self.keys:
            known = ", ".join(sorted(self.keys)) or "none"
            raise ValueError(f"key_id is {self.key_id!r}, which must be one of keys ({known})")
        return self

    def dump_with_secrets(self) -> dict[str, object]:
        """Give all of it with the keys as they are, for the environment of a node."""
        secrets = {name: key.get_secret_value() for name, key in self.keys.items()}
        return {**self.model_dump(exclude_none=True), "keys": secrets}
