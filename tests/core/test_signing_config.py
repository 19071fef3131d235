"""The keys with which tasks are signed."""

import pytest

from conductor.core.config import ConductorConfig, SigningConfig, load_config
from conductor.core.exceptions import ConfigurationError

SECRET = "a-secret-of-the-test"


def test_a_key_is_in_no_repr_and_no_dump() -> None:
    config = ConductorConfig(signing={"keys": {"one": SECRET}, "key_id": "one"})
    for text in (repr(config), str(config), repr(config.signing), config.model_dump_json()):
        assert SECRET not in text
    given = config.signing.dump_with_secrets()
    assert SigningConfig.model_validate(given) == config.signing


@pytest.mark.parametrize(
    ("signing", "problem"),
    [
        ('{"keys": {"one": "too-short"}, "key_id": "one"}', "shorter than 16 bytes"),
        ('{"keys": {"one": "a-secret-of-the-test"}}', "key_id is None"),
        ('{"keys": {"one": "a-secret-of-the-test"}, "key_id": "two"}', "key_id is 'two'"),
        ('{"key_id": "two"}', "one of keys (none)"),
        ('{"keys": ["a-secret-of-the-test"]}', "signing.keys"),
        ('{"keys": {"one": ["a-secret-of-the-test"]}, "key_id": "one"}', "signing.keys"),
    ],
)
def test_what_cannot_sign_is_an_error_without_the_key(
    monkeypatch: pytest.MonkeyPatch, signing: str, problem: str
) -> None:
    monkeypatch.setenv("CONDUCTOR_SIGNING", signing)
    with pytest.raises(ConfigurationError) as caught:
        load_config()
    assert problem in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "too-short" not in str(caught.value)
