"""TLS to servers: what a URL says of certificates, and what is wrong with one."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from conductor.core.exceptions import ConfigurationError, causes_of
from conductor.core.urls import shown, without_parameters

_ALWAYS, _ON_REQUEST = ("rediss", "amqps"), ("sentinel",)
_PREFIX = "ssl_"
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_REQUIREMENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_PARAMETERS = (*_FILES, "ssl_password", "ssl_cert_reqs", "ssl_check_hostname")


def read_tls(url: str) -> dict[str, Any] | None:
    """Give what a URL says of TLS, by the names that redis-py has for it; None where there is none.

    Certificate and host name are checked unless the URL says otherwise. Reads the files that it names: a
    parameter that cannot be used is a ConfigurationError that names it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None  # Whoever connects says what is wrong with it.
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    given = {name: value for name, value in pairs if name.startswith(_PREFIX)}
    if parts.scheme not in _ALWAYS and not (given and parts.scheme in _ON_REQUEST):
        if given:
            secure = {"redis": "rediss", "amqp": "amqps"}.get(parts.scheme)
            raise ConfigurationError(
                f"{next(iter(given))} is of no use in {parts.scheme}://, which has no TLS: "
                + (f"write {secure}://" if secure else "leave it out")
            )
        return None
    if parts.scheme in _ALWAYS and ";" in url:
        raise ConfigurationError(
            f"{parts.scheme}:// names one server, not several joined by ';': give them one address"
        )
    settings = _settings(given)
    if any(name in settings for name in _FILES):
        make_context(settings)
    return settings


def without_tls(url: str) -> str:
    """Give the URL without what `read_tls` reads."""
    return without_parameters(url, lambda name: name.startswith(_PREFIX))


def make_context(settings: dict[str, Any]) -> ssl.SSLContext:
    """Make what checks certificates as the result of `read_tls` says; ConfigurationError as there."""
    context = _trusting(settings)
    context.check_hostname = settings["ssl_check_hostname"]
    context.verify_mode = settings["ssl_cert_reqs"]
    certificate, key = settings.get("ssl_certfile"), settings.get("ssl_keyfile")
    if certificate is None:
        return context
    password = settings.get("ssl_password", "")
    try:
        # A function, or OpenSSL would ask for the password in the terminal.
        context.load_cert_chain(certificate, key, lambda: password)
    except OSError as error:
        named = f"ssl_certfile={shown(certificate)}" + (f" with ssl_keyfile={shown(key)}" if key else "")
        raise ConfigurationError(
            f"{named} cannot be used: {_reason(error)}. Name a certificate and its key, both as PEM, and the "
            "password of the key as ssl_password where it has one"
        ) from None
    return context


def _settings(given: dict[str, str]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in _PARAMETERS:
            raise ConfigurationError(f"{name} is not known; known are {', '.join(_PARAMETERS)}")
        if not value:
            raise ConfigurationError(f"{name} is empty: give it a value, or leave it out")
    required = _choice("ssl_cert_reqs", given.get("ssl_cert_reqs", "required"), _REQUIREMENTS)
    checked = required is not ssl.CERT_NONE
    if "ssl_check_hostname" in given:
        wanted = _choice("ssl_check_hostname", given["ssl_check_hostname"].lower(), _TRUTH)
        if wanted and not checked:
            raise ConfigurationError(
                "ssl_check_hostname=true has no effect with ssl_cert_reqs=none: write ssl_cert_reqs=required"
            )
        checked = wanted
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise ConfigurationError("ssl_keyfile is given and ssl_certfile is not: name the certificate as well")
    named = {name: given[name] for name in (*_FILES, "ssl_password") if name in given}
    return {"ssl_cert_reqs": required, "ssl_check_hostname": checked, **named}


def _choice(name: str, value: str, known: dict[str, Any]) -> Any:
    if value not in known:
        raise ConfigurationError(f"{name}={shown(value)} is none of {', '.join(known)}")
    return known[value]


def _trusting(settings: dict[str, Any]) -> ssl.SSLContext:
    file, directory = settings.get("ssl_ca_certs"), settings.get("ssl_ca_path")
    try:
        if directory is not None:
            os.scandir(directory).close()  # which OpenSSL does not miss
        return ssl.create_default_context(cafile=file, capath=directory)
    except OSError as error:
        name, value = ("ssl_ca_path", directory) if file is None else ("ssl_ca_certs", file)
        raise ConfigurationError(
            f"{name}={shown(value)} cannot be used: {_reason(error)}. Name the certificates of the CAs to "
            "trust, as PEM"
        ) from None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)


@dataclass(frozen=True)
class TLSTrouble:
    """What keeps a server from being talked to, and what to do about it; neither ends with a full stop."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"


def explain_tls(error: BaseException | None, url: str) -> TLSTrouble | None:
    """Say what TLS made of an attempt to connect to `url` that failed; None where it was not TLS."""
    for each in causes_of(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return _of_certificate(each)
        if isinstance(each, _ENDED) and urlsplit(url).scheme in (*_ALWAYS, *_ON_REQUEST):
            return _ENDED_IT
        if isinstance(each, ssl.SSLError) and each.reason:
            return _of_handshake(each.reason)
    return None


# With TLS 1.3 a server says only after the handshake that it wants another certificate, and what it says is
# lost where we wrote meanwhile.
_ENDED = (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)
_ENDED_IT = TLSTrouble(
    "it ended the connection",
    "if it demands a client certificate, name one that it trusts, as "
    "ssl_certfile=/path/client.pem&ssl_keyfile=/path/client.key, else look at what it logs",
)

#: X509_V_ERR_CERT_NOT_YET_VALID and the like, of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST = 9, 10, (62, 64)


def _of_certificate(error: ssl.SSLCertVerificationError) -> TLSTrouble:
    reason = error.verify_message.rstrip(".")
    if error.verify_code in _OTHER_HOST:
        return TLSTrouble(
            f"its certificate is for another host ({reason})",
            "write a name or an address into the URL that the certificate has, or give the server one that "
            "has this",
        )
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return TLSTrouble(
            f"its certificate is out of date ({reason})", "renew it, if the clock of this machine is right"
        )
    return TLSTrouble(
        f"its certificate is not trusted ({reason})",
        "name the certificate of the CA that signed it in the URL, as ssl_ca_certs=/path/ca.pem",
    )


_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")
_OF_OURS = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN")


def _of_handshake(reason: str) -> TLSTrouble:
    words = reason.lower().replace("_", " ")
    if reason in _NO_TLS:
        return TLSTrouble(
            f"it does not speak TLS at this port ({words})", "correct the port, or the scheme of the URL"
        )
    if "ALERT_CERTIFICATE_REQUIRED" in reason:
        return TLSTrouble(
            f"it demands a client certificate ({words})",
            "name one in the URL, as ssl_certfile=/path/client.pem&ssl_keyfile=/path/client.key",
        )
    if "ALERT" in reason and reason.endswith(_OF_OURS):
        return TLSTrouble(
            f"it does not accept the client certificate ({words})",
            "name one that is valid, of a CA that the server trusts, as ssl_certfile and ssl_keyfile",
        )
    return TLSTrouble(f"TLS failed ({words})", "look at what the server logs")
