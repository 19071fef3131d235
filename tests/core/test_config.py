"""Settings: where they come from, which wins, what a mistake says, and that no secret is shown."""

import pwd
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import ValidationError

from conductor.core.config import ConductorConfig, load_config, mask_url
from conductor.core.exceptions import ConfigurationError
from conductor.core.retry import RetryPolicy

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "conductor.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def failure(path: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert caught.value.error_code == "CONFIG_ERROR"
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    assert ConductorConfig().model_dump() == {
        "broker_url": None,
        "redis": {
            "url": None,
            "key_prefix": "conductor:",
            "result_expires_seconds": 86400,
            "agent_expires_seconds": None,
            "workflow_expires_seconds": None,
            "task_result_expires_seconds": None,
        },
        "data_dir": tmp_path / "data-home" / "conductor",
        "log_level": "INFO",
        "log_format": "auto",
        "bus": {
            "buffer_size": 65536,
            "publish_timeout": 10.0,
            "connect_timeout": 5.0,
            "max_message_bytes": 1048576,
        },
        "work": {
            "visibility_timeout": 15.0,
            "touch_interval": 3.0,
            "restore_interval": 3.0,
            "hard_limit_grace": 5.0,
        },
        "node": {"agent": None, "agent_id": None, "heartbeat_interval": 2.0},
        "policies": [],
        "metrics": {"port": None, "host": "127.0.0.1", "directory": None},
        "tracing": {
            "exporter": "none",
            "endpoint": None,
            "service_name": "conductor",
            "sample_ratio": 1.0,
        },
        "signing": {"keys": {}, "key_id": None, "accept_unsigned": False, "window_seconds": 300.0},
        "errors": {
            "retry": RetryPolicy().model_dump(),
            "breaker": {"failure_threshold": 5, "recovery_timeout": 60.0, "success_threshold": 2},
            "max_worker_losses": 3,
            "unknown_agent_seconds": 30.0,
        },
    }
    assert load_config() == ConductorConfig()


def test_data_dir_without_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ConductorConfig().data_dir == tmp_path / ".local" / "share" / "conductor"


def test_a_user_without_a_home_has_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert ConductorConfig().data_dir == tmp_path / ".conductor"
    write("data_dir: ~/here")
    assert "data_dir in file 'conductor.yaml' is not valid: '~/here' cannot be expanded" in failure()


@pytest.mark.parametrize("direct", [True, False])
def test_arguments_over_environment_over_file_over_defaults(
    monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    write("bus: {buffer_size: 5, publish_timeout: 3}\nlog_level: error\n")
    monkeypatch.setenv("CONDUCTOR_BUS__BUFFER_SIZE", "7")
    config = ConductorConfig() if direct else load_config()
    assert (config.bus.buffer_size, config.bus.publish_timeout, config.bus.connect_timeout) == (7, 3.0, 5.0)
    assert config.log_level == "ERROR"
    assert ConductorConfig(log_level="DEBUG").log_level == "DEBUG"


def test_the_given_file_is_read_instead_of_the_one_in_the_directory() -> None:
    write("log_level: ERROR\nbus: {buffer_size: 5}\n")
    path = write("log_level: DEBUG\n", "other.yaml")
    config = load_config(path)
    assert (config.log_level, config.bus.buffer_size) == ("DEBUG", 65536)
    assert load_config(str(path)) == config
    assert ConductorConfig().log_level == "ERROR"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "redis:\n", "{}"])
def test_an_empty_file_or_section_gives_the_defaults(text: str) -> None:
    defaults = ConductorConfig()
    assert load_config(write(text)) == defaults


def test_a_missing_file_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDUCTOR_BROKER_URL", "")
    monkeypatch.setenv("CONDUCTOR_UNKNOWN", "of another program")
    assert ConductorConfig().broker_url is None


def test_expiry_is_set_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ConductorConfig().redis.expires_seconds == {}
    write("redis: {workflow_expires_seconds: 60}\n")
    monkeypatch.setenv("CONDUCTOR_REDIS__TASK_RESULT_EXPIRES_SECONDS", "1.5")
    assert load_config().redis.expires_seconds == {"workflow": 60.0, "task_result": 1.5}
    monkeypatch.setenv("CONDUCTOR_REDIS__AGENT_EXPIRES_SECONDS", "5")
    assert "agent_expires_seconds (5 s) must be at least 3 times node.heartbeat_interval (2 s)" in failure()
    monkeypatch.setenv("CONDUCTOR_REDIS__AGENT_EXPIRES_SECONDS", "0")
    assert "redis.agent_expires_seconds" in failure()


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONDUCTOR_DATA_DIR", "~/here")
    assert ConductorConfig().data_dir == tmp_path / "here"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("colour: red", ["'colour'", "conductor.yaml", "broker_url"]),
        ("redis: {urll: x}", ["'redis.urll'", "conductor.yaml", "did you mean 'url'"]),
        ("7: x", ["'7'", "conductor.yaml"]),
        ("bus: {buffer_size: 0}", ["bus.buffer_size = 0", "conductor.yaml", "greater than or equal to 1"]),
        ("log_level: loud", ["log_level = 'LOUD'", "'DEBUG'"]),
        ("redis: 3", ["redis = 3", "conductor.yaml"]),
        ("broker_url: localhost", ["broker_url", "'localhost' is not a URL", "redis://localhost:6379/0"]),
        (
            "broker_url: redis://localhost:6379/abc",
            [
                "broker_url",
                "'redis://localhost:6379/abc' names the database 'abc'",
                "redis://localhost:6379/0",
            ],
        ),
        ("work: {touch_interval: 14}", ["work", "touch_interval", "visibility_timeout"]),
        ("a: [", ["conductor.yaml", "line 1"]),
        ("- a", ["conductor.yaml", "mapping"]),
        ("!!python/object/apply:os.getcwd []", ["conductor.yaml"]),
    ],
)
def test_a_mistake_in_the_file_names_key_file_and_way_out(text: str, parts: list[str]) -> None:
    write(text)
    message = failure()
    for part in parts:
        assert part in message


def test_all_mistakes_are_told_at_once() -> None:
    write("bus: {buffer_size: x}\ncolour: red\n")
    message = failure()
    assert "bus.buffer_size" in message
    assert "colour" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONDUCTOR_BUS__BUFFER_SIZE", "many"),
        ("CONDUCTOR_NODE__COLOUR", "red"),
        ("CONDUCTOR_REDIS", '{"urll": 1}'),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert name in failure()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CONDUCTOR_REDIS_URL", "CONDUCTOR_REDIS__URL"),
        ("CONDUCTOR_BROKER_ULR", "CONDUCTOR_BROKER_URL"),
        ("CONDUCTOR_BROKER", "CONDUCTOR_BROKER_URL"),
        ("conductor_loglevel", "CONDUCTOR_LOG_LEVEL"),
        ("CONDUCTOR_POLICIES__0", "CONDUCTOR_POLICIES"),
    ],
)
def test_a_misspelled_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    monkeypatch.setenv(name, "redis://host")
    assert failure() == f"The environment variable {name} is no setting: did you mean {meant}?"


def test_a_variable_of_another_program_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CONDUCTOR_SERVER_URL", "http://conductor.example")
    assert load_config() == ConductorConfig()
    assert "CONDUCTOR_SERVER_URL is no setting of Conductor" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "CONDUCTOR_TEST_REDIS_URL",
        "CONDUCTOR_PORT",
        "CONDUCTOR_SERVICE_HOST",
        "CONDUCTOR_SERVICE_PORT_HTTP",
        "CONDUCTOR_REDIS_PORT_6379_TCP_ADDR",
    ],
)
def test_variables_that_others_make_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:6379")
    load_config()
    assert caplog.text == ""


def test_a_policy_that_is_none_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDUCTOR_POLICIES", "[3]")
    assert failure() == (
        "policies[0] in environment variable CONDUCTOR_POLICIES is not valid: a policy is a name, or a "
        "mapping of one name to its parameters, not 3."
    )


def test_a_configuration_knows_where_a_setting_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    write("broker_url: redis://host\n")
    assert load_config().source_of("broker_url") == "file 'conductor.yaml'"
    assert load_config(write("", "other.yaml")).source_of("redis", "url") == "file 'other.yaml'"
    monkeypatch.setenv("CONDUCTOR_BROKER_URL", "redis://other")
    assert load_config().source_of("broker_url") == "environment variable CONDUCTOR_BROKER_URL"


def test_a_section_variable_that_is_no_json_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDUCTOR_REDIS", f"redis://:{SECRET}@host")
    message = failure()
    assert "CONDUCTOR_REDIS is not valid: it must be a JSON object" in message
    assert "CONDUCTOR_REDIS__KEY" in message
    assert SECRET not in message


def test_a_file_that_cannot_be_read_is_our_error(tmp_path: Path) -> None:
    assert "directory" in failure(tmp_path)
    Path("latin.yaml").write_bytes(b"log_level: \xff\xfe\xfd")
    assert "UTF-8" in failure(Path("latin.yaml"))


def test_the_constructor_refuses_too() -> None:
    with pytest.raises(ValidationError):
        ConductorConfig(log_level="loud")
    with pytest.raises(ValidationError):
        ConductorConfig(colour="red")  # type: ignore[call-arg]


def test_no_secret_in_repr_and_all_of_it_in_the_dump() -> None:
    broker, redis = f"amqp://me:{SECRET}@host:5672/v", f"redis://:{SECRET}@host:6379/0"
    config = ConductorConfig.model_validate({"broker_url": broker, "redis": {"url": redis}})
    for text in (repr(config), str(config), repr(config.redis), str(config.redis), f"{config}"):
        assert SECRET not in text
        assert "host" in text
    assert (config.broker_url, config.redis.url) == (broker, redis)
    assert config.model_dump_json().count(SECRET) == 2


@pytest.mark.parametrize(
    "text",
    [
        f"broker_url: ':{SECRET}@host'",
        f"broker_url: '://:{SECRET}@host'",
        f"redis: {{password: {SECRET}}}",
        f"broker_url: [redis://:{SECRET}@host]",
        f"log_level: redis://:{SECRET}@host",
    ],
)
def test_no_secret_in_an_error(text: str) -> None:
    write(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config()
    assert SECRET not in str(caught.value)
    assert SECRET not in str(caught.value.details)
    with pytest.raises(ValidationError) as raw:
        ConductorConfig()
    assert SECRET not in str(raw.value)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://me:pw@host", "redis://me:***@host"),
        ("amqps://guest@host//v", "amqps://guest@host//v"),
        ("redis://:p@w/o:r?d#@host:1/0", "redis://:***@host:1/0"),
        ("redis+socket://:pw@/run/x.sock", "redis+socket://:***@/run/x.sock"),
        ("sentinel://:a@h1:1;sentinel://:b@h2:2", "sentinel://:***@h1:1;sentinel://:***@h2:2"),
        ("amqp://u:a@h1,amqp://u:b@h2", "amqp://u:***@h1,amqp://u:***@h2"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("redis://h?x=1&ssl_keyfile_password=pw", "redis://h?x=1&ssl_keyfile_password=***"),
        ("memory://", "memory://"),
        ("coding@host", "coding@host"),
        ("", ""),
    ],
)
def test_mask_url(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert mask_url(masked) == masked


@pytest.mark.parametrize(
    ("broker", "redis", "effective_broker", "effective_redis"),
    [
        (None, None, None, None),
        ("redis://a", None, "redis://a", "redis://a"),
        ("rediss://a", None, "rediss://a", "rediss://a"),
        (None, "redis://b", "redis://b", "redis://b"),
        ("redis://a", "redis://b", "redis://a", "redis://b"),
        ("amqp://a", None, "amqp://a", None),
        ("amqp://a", "redis://b", "amqp://a", "redis://b"),
        ("sentinel://a", None, "sentinel://a", None),
    ],
)
def test_broker_and_redis_stand_in_for_each_other(
    broker: str | None, redis: str | None, effective_broker: str | None, effective_redis: str | None
) -> None:
    config = ConductorConfig.model_validate({"broker_url": broker, "redis": {"url": redis}})
    assert config.effective_broker_url == effective_broker
    assert config.effective_redis_url == effective_redis


def test_a_password_is_masked_also_where_no_url_belongs() -> None:
    write(f"bus: {{buffer_size: 'redis://:{SECRET}@host'}}")
    message = failure()
    assert "redis://:***@host" in message
    assert SECRET not in message
