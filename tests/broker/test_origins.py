"""Who asked is remembered as long as somebody may answer, and no longer."""

import time

import pytest

from conductor.broker import origins
from conductor.broker.origins import Origins


def test_an_origin_is_found_while_its_asker_waits() -> None:
    known = Origins()
    known.remember("question", "inbox", time.time() + 10)
    assert known.find("question") == ("inbox",)
    assert known.find("other") == ()


def test_all_who_ask_with_one_correlation_id_are_known_the_latest_last() -> None:
    known = Origins()
    for inbox in ("one", "two", "one"):
        known.remember("question", inbox, time.time() + 10)
    assert known.find("question") == ("two", "one")
    for number in range(100):
        known.remember("question", str(number), time.time() + 10)
    assert len(known.find("question")) == 16
    assert known.find("question")[-1] == "99"


def test_an_origin_is_forgotten_some_time_after_its_asker_left() -> None:
    known = Origins()
    known.remember("old", "inbox", time.time() - 1000)
    known.remember("new", "inbox", time.time() + 10)
    assert len(known) == 1
    assert known.find("old") == ()


def test_there_is_a_limit_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "_LIMIT", 3)
    known = Origins()
    for number in range(5):
        known.remember(str(number), "inbox", None)
    assert [known.find(str(number)) for number in range(5)] == [(), (), *[("inbox",)] * 3]
