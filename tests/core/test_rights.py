"""What servers say of rights that are missing, in their own words."""

import pytest

from conductor.core.rights import missing_in_rabbitmq, missing_in_redis


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("NOPERM User app has no permissions to run the 'config|get' command", "+config|get"),
        ("User app has no permissions to run the 'del' command", "+del"),
        ("NOPERM this user has no permissions to run the 'evalsha' command or its subcommand", "+evalsha"),
        (
            "ERR ACL failure in script: User app has no permissions to run the 'get' command script: x, "
            "on @user_script:1.",
            "+get",
        ),
        ("NOPERM User app has no permissions to access the 'a:b' key", "the key 'a:b'"),
        ("NOPERM User app has no permissions to access the 'a:b' channel", "the channel 'a:b'"),
        ("No permissions to access a key", "the key 'here', or another that ACL LOG"),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", "'here'"),
        ("NOPERM this user has no permissions to access one of the channels used as arguments", "'here'"),
        ("NOPERM in words that nobody knows", "ACL LOG"),
    ],
)
def test_what_is_missing_on_redis_is_named(reply: str, named: str) -> None:
    told = missing_in_redis(reply, "here")
    assert told is not None
    assert named in told
    assert told.endswith("see docs/security.md")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (
            "Exchange.declare: (403) ACCESS_REFUSED - access to exchange 'e' in vhost 'v' "
            "refused for user 'u'",
            "user 'u' has no right to configure exchange 'e' in virtual host 'v'",
        ),
        (
            "Basic.publish: (403) ACCESS_REFUSED - access to exchange 'e' in vhost 'v' refused for user 'u'",
            "no right to write exchange 'e'",
        ),
        (
            "Queue.bind: (403) ACCESS_REFUSED - access to exchange 'e' in vhost 'v' refused for user 'u'",
            "no right to read exchange 'e'",
        ),
        (
            "Queue.bind: (403) ACCESS_REFUSED - write access to queue 'q' in vhost 'v' refused for user 'u'",
            "no right to write queue 'q'",
        ),
        ("Connection.open: (530) NOT_ALLOWED - access to vhost 'v' refused for user 'u'", "host 'v'"),
    ],
)
def test_what_is_missing_on_rabbitmq_is_named(error: str, named: str) -> None:
    told = missing_in_rabbitmq(error)
    assert told is not None
    assert named in told
    assert told.endswith("see docs/security.md")


def test_what_is_no_right_is_none() -> None:
    assert missing_in_redis("WRONGPASS invalid username-password pair or user is disabled.") is None
    assert missing_in_redis("OOM command not allowed when used memory > 'maxmemory'.") is None
    refused = "(403) ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."
    assert missing_in_rabbitmq(refused) is None
