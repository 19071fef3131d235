"""Channels: built, parsed, refused and matched."""

import pytest

from conductor.core.channels import (
    BROADCAST,
    DLQ,
    ERRORS,
    RESPONSE,
    Channel,
    ChannelKind,
    agent_channel,
    is_pattern,
    matches,
    parse_channel,
    phase_channel,
    task_channel,
    validate_channel,
    validate_name,
    validate_pattern,
    workflow_channel,
)
from conductor.core.exceptions import MessageBusError

BLANKS_AND_CONTROLS = [" ", "\t", "\n", "\r", "\x00", "\x1b", "\x7f", "\x85", "\xa0", "\u2003", "\u2028"]
NASTY_NAMES = [
    "",
    ":",
    "a:b",
    "*",
    "a*",
    "#",
    "a#b",
    "x" * 129,
    "\ud800",
    "ü" * 100,
    *(f"a{bad}b" for bad in BLANKS_AND_CONTROLS),
]
NASTY_CHANNELS = ["", "x" * 201, "é" * 101, "\ud800", *(f"a{bad}b" for bad in BLANKS_AND_CONTROLS)]


def test_the_table() -> None:
    assert agent_channel("a-1") == "conductor:agent:a-1"
    assert phase_channel("devops") == "conductor:phase:devops"
    assert workflow_channel("w") == "conductor:workflow:w"
    assert task_channel("t") == "conductor:task:t"
    assert (BROADCAST, RESPONSE, ERRORS, DLQ) == (
        "conductor:broadcast",
        "conductor:response",
        "conductor:errors",
        "conductor:dlq",
    )


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("conductor:agent:a.b-c_d@h", Channel(ChannelKind.AGENT, "a.b-c_d@h")),
        ("conductor:phase:devops", Channel(ChannelKind.PHASE, "devops")),
        ("conductor:workflow:ü", Channel(ChannelKind.WORKFLOW, "ü")),
        ("conductor:task:t-1", Channel(ChannelKind.TASK, "t-1")),
        ("conductor:broadcast", Channel(ChannelKind.BROADCAST)),
        ("conductor:response", Channel(ChannelKind.RESPONSE)),
        ("conductor:errors", Channel(ChannelKind.ERRORS)),
        ("conductor:dlq", Channel(ChannelKind.DLQ)),
        ("conductor:agent", Channel(ChannelKind.OTHER, "conductor:agent")),
        ("my.own#channel", Channel(ChannelKind.OTHER, "my.own#channel")),
        ("conductor:dlq:x", Channel(ChannelKind.OTHER, "conductor:dlq:x")),
    ],
)
def test_parsing_and_back(text: str, channel: Channel) -> None:
    assert parse_channel(text) == channel
    assert str(channel) == text


def test_a_name_of_128_characters_is_allowed() -> None:
    name = "x" * 128
    assert parse_channel(agent_channel(name)).name == name


@pytest.mark.parametrize(
    "build", [agent_channel, phase_channel, workflow_channel, task_channel, validate_name]
)
@pytest.mark.parametrize("name", NASTY_NAMES, ids=ascii)
def test_nasty_names_are_refused_by_name(build: object, name: str) -> None:
    with pytest.raises(MessageBusError) as caught:
        build(name)  # type: ignore[operator]
    assert caught.value.error_code == "INVALID_CHANNEL"
    assert repr(name)[1:-1] in str(caught.value)


@pytest.mark.parametrize("name", NASTY_NAMES, ids=ascii)
def test_nasty_names_are_refused_in_parsing(name: str) -> None:
    with pytest.raises(MessageBusError) as caught:
        parse_channel(f"conductor:agent:{name}")
    assert caught.value.error_code == "INVALID_CHANNEL"


@pytest.mark.parametrize("channel", NASTY_CHANNELS, ids=ascii)
@pytest.mark.parametrize("validate", [validate_channel, validate_pattern, parse_channel])
def test_nasty_channels_are_refused(validate: object, channel: str) -> None:
    with pytest.raises(MessageBusError) as caught:
        validate(channel)  # type: ignore[operator]
    assert caught.value.error_code == "INVALID_CHANNEL"
    assert caught.value.details == {"value": channel}


@pytest.mark.parametrize("value", [None, 7, b"conductor:broadcast"])
@pytest.mark.parametrize("validate", [validate_channel, validate_pattern, parse_channel, agent_channel])
def test_what_is_no_text_is_refused(validate: object, value: object) -> None:
    with pytest.raises(MessageBusError) as caught:
        validate(value)  # type: ignore[operator]
    assert caught.value.error_code == "INVALID_CHANNEL"


@pytest.mark.parametrize("channel", ["x" * 200, "é" * 100, "a", "a#b", "a?[b]\\c", "conductor:agent:a:b"])
def test_other_names_are_allowed(channel: str) -> None:
    validate_channel(channel)
    validate_pattern(channel)


def test_a_star_is_for_patterns_only() -> None:
    validate_pattern("conductor:*")
    assert is_pattern("conductor:*")
    assert not is_pattern("conductor:dlq")
    with pytest.raises(MessageBusError, match="pattern") as caught:
        validate_channel("conductor:*")
    assert caught.value.error_code == "INVALID_CHANNEL"


@pytest.mark.parametrize(
    ("pattern", "channel", "expected"),
    [
        ("conductor:dlq", "conductor:dlq", True),
        ("conductor:dlq", "conductor:dlq2", False),
        ("conductor:workflow:*", "conductor:workflow:1", True),
        ("conductor:workflow:*", "conductor:workflow:", True),
        ("conductor:workflow:*", "conductor:workflow", False),
        ("conductor:workflow:*", "conductor:workflow:a:b.c", True),
        ("conductor:*", "conductor:agent:x", True),
        ("*", "anything at all", True),
        ("*", "", True),
        ("*:errors", "conductor:errors", True),
        ("*:errors", "conductor:errors:x", False),
        ("a*b*c", "abc", True),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "acb", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("ab*ba", "aba", False),
        ("*ab*ab*", "abab", True),
        ("*ab*ab*", "abaab", True),
        ("*ab*ab*", "ab-a", False),
        ("a**b", "ab", True),
        ("a.c", "abc", False),
        ("a?c", "abc", False),
        ("a[b]c", "abc", False),
        ("a#", "ab", False),
        ("a\\*", "a\\x", True),
        ("A*", "abc", False),
    ],
)
def test_only_the_star_is_special(pattern: str, channel: str, expected: bool) -> None:
    assert matches(pattern, channel) is expected


def test_a_nasty_pattern_is_matched_at_once() -> None:
    # A matcher that backtracks would still be at it in a century.
    assert not matches("*a" * 90 + "*b", "a" * 199 + "c")
