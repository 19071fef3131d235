"""What a URL may say of TLS."""

import ssl
from pathlib import Path

import pytest

from conductor.core.exceptions import ConfigurationError
from conductor.core.tls import make_context, read_tls, without_tls
from tests.support.certificates import Authority

SECRET = "of-the-key-77"


@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
def test_certificate_and_host_name_are_checked_by_default(scheme: str) -> None:
    settings = read_tls(f"{scheme}://host")
    assert settings == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    context = make_context(settings)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    "url", ["redis://h", "amqp://h", "unix:///s?db=1", "sentinel://h/0?master_name=m", "x"]
)
def test_there_is_no_tls_where_the_url_asks_for_none(url: str) -> None:
    assert read_tls(url) is None
    assert without_tls(url) == url


def test_what_is_less_is_asked_for_by_name() -> None:
    nothing = make_context(read_tls("rediss://h?ssl_cert_reqs=none") or {})
    assert (nothing.verify_mode, nothing.check_hostname) == (ssl.CERT_NONE, False)
    for word in ("false", "False", "no", "0"):
        nameless = make_context(read_tls(f"amqps://h?ssl_check_hostname={word}") or {})
        assert (nameless.verify_mode, nameless.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_only_the_cas_that_are_named_are_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = make_context(read_tls(f"amqps://h?ssl_ca_certs={authority.file}") or {})
    assert [dict(pair[0] for pair in ca["subject"]) for ca in context.get_ca_certs()] == [
        {"commonName": "Conductor test ca"}
    ]


def test_libraries_are_given_the_rest_of_the_url() -> None:
    url = "rediss://:pass%2Fword@h:1/2?ssl_ca_certs=%2Fa%20b.pem&protocol=3&ssl_check_hostname=no"
    assert without_tls(url) == "rediss://:pass%2Fword@h:1/2?protocol=3"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", "ssl_cert_reqs='CERT_REQUIRED' is none of none, optional"),
        ("amqps://h?ssl_check_hostname=perhaps", "ssl_check_hostname='perhaps' is none of true, yes"),
        ("amqps://h?ssl_cert_reqs=none&ssl_check_hostname=true", "no effect with ssl_cert_reqs=none"),
        ("amqps://h?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs='/nowhere.pem' cannot be used: No such file"),
        ("rediss://h?ssl_ca_path=/nowhere", "ssl_ca_path='/nowhere' cannot be used: No such file"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs is empty"),
        ("amqps://h?ssl_certfile=/nowhere.pem", "ssl_certfile='/nowhere.pem' cannot be used: No such file"),
        ("amqps://h?ssl_keyfile=/nowhere.key", "ssl_certfile is not: name the certificate"),
        ("rediss://h?ssl_ca_cert=/x", "ssl_ca_cert is not known; known are ssl_ca_certs"),
        ("redis://h?ssl_ca_certs=/x", "no use in redis://, which has no TLS: write rediss://"),
        ("amqp://h?ssl_cert_reqs=none", "no use in amqp://, which has no TLS: write amqps://"),
        ("amqps://one;amqps://two", "names one server"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_way_out(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_tls(url)
    assert words in raised.value.message


@pytest.mark.parametrize("password", ["", f"&ssl_password={SECRET}"])
def test_a_key_that_cannot_be_opened_shows_no_password_and_asks_nobody(tmp_path: Path, password: str) -> None:
    certificate = Authority(tmp_path).client(password="another-password")
    with pytest.raises(ConfigurationError, match=r"ssl_keyfile=.*cannot be used.*ssl_password") as raised:
        read_tls(f"amqps://h?{certificate.parameters}{password}")
    assert SECRET not in str(raised.value)


def test_a_file_that_holds_no_certificate_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(ConfigurationError, match=r"empty.pem' cannot be used: .*as PEM"):
        read_tls(f"rediss://h?ssl_ca_certs={empty}")
