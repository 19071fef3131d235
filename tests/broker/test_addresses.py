"""Which servers a configuration means."""

from pathlib import Path

import pytest

from conductor.broker.addresses import Addresses, find_addresses
from conductor.core.config import ConductorConfig
from conductor.core.exceptions import ConfigurationError

REDIS = "redis://redis.example:6379/0"
RABBITMQ = "amqp://rabbit.example/"


@pytest.mark.parametrize(
    ("broker", "redis", "found"),
    [
        (REDIS, None, Addresses(REDIS, REDIS)),
        (None, REDIS, Addresses(REDIS, REDIS)),
        (RABBITMQ, REDIS, Addresses(RABBITMQ, REDIS)),
    ],
)
def test_redis_serves_as_both(
    broker: str | None, redis: str | None, found: Addresses, tmp_path: Path
) -> None:
    config = ConductorConfig(broker_url=broker, redis={"url": redis}, data_dir=tmp_path)
    assert find_addresses(config) == found


@pytest.mark.parametrize(("broker", "code"), [(None, "NO_BROKER"), (RABBITMQ, "NO_REDIS")])
def test_what_is_missing_is_said(broker: str | None, code: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        find_addresses(ConductorConfig(broker_url=broker, data_dir=tmp_path))
    assert raised.value.error_code == code


def test_an_unknown_broker_is_named_before_anything_else_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"kafka://broker.*known ones are redis://"):
        find_addresses(ConductorConfig(broker_url="kafka://broker", data_dir=tmp_path))


def test_no_password_is_shown() -> None:
    addresses = Addresses("amqp://me:s3cret@rabbit.example/", "redis://:s3cret@redis.example/0")
    assert "s3cret" not in repr(addresses)
    assert "rabbit.example" in repr(addresses)
