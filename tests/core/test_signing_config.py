"""The keys with which tasks are signed."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from conductor.core.config import ConductorConfig, SigningConfig, load_config
from conductor.core.exceptions import ConfigurationError

SECRET = "a-secret-of-the-test"
#: A secret without quotes, as YAML reads it.
DIGITS = 98765432109876543210


def test_a_key_is_in_no_repr_and_no_dump() -> None:
    config = ConductorConfig(signing={"keys": {"one": SECRET}, "key_id": "one"})
    for text in (repr(config), str(config), repr(config.signing), config.model_dump_json()):
        assert SECRET not in text
    given = config.signing.dump_with_secrets()
    assert SigningConfig.model_validate(given) == config.signing


KEYS = {"one": SECRET}


@pytest.mark.parametrize(
    ("signing", "problem"),
    [
        ({"keys": {"one": SECRET[:15]}, "key_id": "one"}, "key 1 of 1 is shorter than 16 bytes"),
        ({"keys": KEYS | {"two": SECRET[:9]}, "key_id": "one"}, "key 2 of 2 is shorter"),
        ({"keys": {SECRET: "one"}, "key_id": "one"}, "shorter than 16 bytes"),
        ({"keys": {SECRET: "one"}, "key_id": SECRET}, "shorter than 16 bytes"),
        ({"keys": {SECRET: 1}, "key_id": "1"}, "signing.keys in"),
        ({"keys": {SECRET: "one-that-is-long-enough"}, "key_id": "one"}, "key_id is none of the ids"),
        ({"keys": KEYS}, "key_id is missing"),
        ({"keys": KEYS, "key_id": SECRET}, "key_id is none of the ids of keys, of which there are 1"),
        ({"key_id": SECRET}, "of which there are 0"),
        ({"keys": KEYS, "key_id": DIGITS}, "signing.key_id = *** in"),
        ({"keys": SECRET, "key_id": "one"}, "signing.keys in"),
        ({"keys": [SECRET]}, "signing.keys in"),
        ({"keys": {"one": [SECRET]}, "key_id": "one"}, "signing.keys in"),
        ({"keys": {"one": DIGITS}, "key_id": "one"}, "put each in quotes"),
        ({"keys": KEYS, "key_id": "one", "accept_unsigned": SECRET}, "signing.accept_unsigned = *** in"),
        ({"keys": KEYS, "key_id": "one", "window_seconds": SECRET}, "signing.window_seconds = *** in"),
        ({"one": SECRET}, "Unknown key 'signing.***' in"),
        ({SECRET: "one"}, "known here: keys, key_id"),
        ({"keyid": SECRET}, "did you mean 'key_id'?"),
        (SECRET, "signing = *** in"),
        ([SECRET], "signing in"),
        (DIGITS, "signing = *** in"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "file", "arguments"])
def test_what_cannot_sign_is_an_error_without_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, signing: Any, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if where == "environment":
        monkeypatch.setenv("CONDUCTOR_SIGNING", json.dumps(signing))
    elif where == "file":
        Path("conductor.yaml").write_text(json.dumps({"signing": signing}), encoding="utf-8")
    with pytest.raises((ConfigurationError, ValidationError)) as caught:
        ConductorConfig(signing=signing) if where == "arguments" else load_config()
    if isinstance(caught.value, ConfigurationError):
        assert problem in str(caught.value)
        seen = json.dumps(caught.value.to_dict())
    elif "known here" in problem:
        return  # pydantic names a key that it does not know
    else:
        seen = ""
    seen += "".join(traceback.format_exception(caught.value))
    assert SECRET[:9] not in seen
    assert str(DIGITS) not in seen


@pytest.mark.parametrize("mark", ["*", "!", "&x !", "!x!"])
def test_what_is_no_yaml_is_not_quoted(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "conductor.yaml"
    path.write_text(f"signing: {{keys: {{one: {mark}{SECRET}}}, key_id: one}}", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="line 1, column") as caught:
        load_config(path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
