"""Dead letters as headers and bodies."""

import pytest

from conductor.broker.dead_letters import (
    announcement,
    decode_body,
    encode_body,
    headers_of,
    letter_of,
    wire_form,
)
from conductor.core.dead_letters import DeadLetter, DeadLetterReason


def a_letter(**changes: object) -> DeadLetter:
    fields: dict[str, object] = {
        "reason": DeadLetterReason.EXPIRED,
        "task_id": "t",
        "error_message": "too late",
        "queue": "conductor.type.coding",
        "body": '["the original"]',
        "headers": {"id": "t", "retries": 2},
        "properties": {"reply_to": "somebody"},
    }
    return DeadLetter(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_letter_is_read_back_from_its_headers() -> None:
    letter = a_letter()
    headers = headers_of(letter)
    assert headers["retries"] == 2
    assert headers["conductor_dead_reason"] == "expired"
    assert letter_of(letter.body, headers) == letter


def test_what_is_no_letter_is_refused() -> None:
    with pytest.raises(ValueError, match="reason"):
        letter_of("[]", {"id": "t"})


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"[1]", "text"])
def test_any_body_survives(body: bytes | str) -> None:
    text, encoding = encode_body(body)
    letter = a_letter(body=text, body_encoding=encoding)
    raw = body if isinstance(body, bytes) else body.encode()
    assert decode_body(letter_of(letter.body, headers_of(letter))) == raw


def test_long_texts_are_cut_so_that_the_headers_fit_into_a_frame() -> None:
    headers = headers_of(a_letter(traceback="x" * 10**6 + "the end", error_message="y" * 10**6))
    assert headers["conductor_dead_traceback"].endswith("the end")
    assert sum(len(str(value)) for value in headers.values()) < 100_000


@pytest.mark.parametrize(
    "changes",
    [{"headers": {"id": "n" * 60_000}}, {"task_name": "n" * 60_000}, {"traceback": "\u754c" * 24_000}],
)
def test_a_letter_whose_headers_are_too_long_is_its_body(changes: dict[str, object]) -> None:
    letter = a_letter(**changes)
    body, headers = wire_form(letter)
    assert len(str(headers)) < 100
    assert letter_of(body, headers) == letter


def test_what_an_older_letter_said_is_no_header_of_the_original() -> None:
    old = headers_of(a_letter(traceback="the first"))
    letter = letter_of(*wire_form(a_letter(headers=old)))
    assert (letter.headers, letter.traceback) == ({"id": "t", "retries": 2}, None)


def test_the_announcement_says_why_without_the_body() -> None:
    message = announcement(a_letter(body="secret"))
    assert message.metadata["dead_letter"]["reason"] == "expired"
    assert message.payload["error_message"] == "too late"
    assert "secret" not in message.model_dump_json()
