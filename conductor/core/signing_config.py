"""The setting of how messages are signed."""

from typing import Any, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

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

    @field_validator("keys", mode="wrap")
    @classmethod
    def _are_texts(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> dict[str, SecretStr]:
        try:
            found: dict[str, SecretStr] = validate(value)
        except ValidationError:
            # It names the ids, and says nothing else that helps.
            raise ValueError("it must be a mapping of ids to secrets; put each in quotes") from None
        return found

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        # Ids are not shown: one that is wrong may be a secret, or have changed places with it.
        for number, key in enumerate(self.keys.values(), 1):
            if len(key.get_secret_value().encode("utf-8", "surrogatepass")) < SHORTEST_KEY:
                which = f"key {number} of {len(self.keys)}"
                raise ValueError(f"{which} is shorter than {SHORTEST_KEY} bytes: make a random one")
        if self.keys and self.key_id is None:
            raise ValueError("key_id is missing: it says which of keys signs")
        if self.key_id is not None and self.key_id not in self.keys:
            raise ValueError(f"key_id is none of the ids of keys, of which there are {len(self.keys)}")
        return self

    def dump_with_secrets(self) -> dict[str, object]:
        """Give all of it with the keys as they are, for the environment of a node."""
        secrets = {name: key.get_secret_value() for name, key in self.keys.items()}
        return {**self.model_dump(exclude_none=True), "keys": secrets}
