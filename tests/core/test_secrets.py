"""What is hidden of passwords in texts."""

import json
import traceback
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from conductor.agents.base import BaseAgent
from conductor.core.config import ConductorConfig
from conductor.core.enums import AgentType
from conductor.core.models import TaskDefinition, TaskResult
from conductor.core.secrets import remember_secrets, scrub

PASSWORDS = [
    "hunter-PLAIN-2",
    "hunter-p@ss:w0rd/%41?#x",
    "hunter-\"quo\\te'",
    "hunter-with blank",
    "hunter-grüße€😀\n\\",
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("user", ["", "someone"])
def test_a_password_of_a_url_is_hidden_in_all_its_forms(password: str, user: str) -> None:
    remember_secrets(f"amqps://{user}:{quote(password, safe='')}@host:5671/vhost")
    forms = [password, repr(password), json.dumps(password), quote(password), quote(password, safe="")]
    forms += [repr([form]) for form in forms] + [json.dumps(repr([repr(password)])), ascii(password)]
    text = scrub("\n".join([*forms, f"x=amqp://u:{quote(password)}@h/ and {password}!"]))
    assert "hunter" not in text
    assert text.count("***") >= len(forms) + 2


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("redis://localhost:6379/0?password=in-the-query-1", "in-the-query-1"),
        ("sentinel://:first-one-2@a:1;sentinel://:other-one-3@b:2/0", "other-one-3"),
        ("rediss://localhost/0?ssl_password=of-the-key-4", "of-the-key-4"),
        ("redis://:not-quoted@5@localhost/0", "not-quoted@5"),
    ],
)
def test_so_are_those_in_queries_and_lists_of_urls(url: str, secret: str) -> None:
    remember_secrets(url)
    assert secret not in scrub(f"it says {secret!r}")


def test_words_are_left_alone() -> None:
    remember_secrets("amqp://guest:guest@localhost/")
    remember_secrets("redis://:abc@localhost/0")
    remember_secrets("redis://someone@localhost/0")
    assert scrub("guest, abcd and someone") == "guest, abcd and someone"
    assert scrub("at amqp://guest:guest@localhost/") == "at amqp://guest:***@localhost/"


def test_a_configuration_makes_its_passwords_known() -> None:
    ConductorConfig(broker_url="amqp://u:known-broker@h/", redis={"url": "redis://:known-redis@h/0"})
    assert scrub("known-broker known-redis") == "*** ***"


class Leaky(BaseAgent):
    """Puts the password into all that it can fail with."""

    async def _validate_task(self, task: TaskDefinition) -> bool:
        return True

    async def _execute(self, task: TaskDefinition) -> TaskResult:
        raise ConnectionError("no answer from redis://:leaky-p%40ss@h/0, tried leaky-p@ss")


async def test_an_error_of_an_agent_says_none() -> None:
    config = ConductorConfig(broker_url="redis://:leaky-p%40ss@h/0")
    agent = Leaky("leaky", AgentType.CODING, config)
    await agent.start()
    result = await agent.execute_task(TaskDefinition(name="x"))
    assert "leaky-p" not in result.model_dump_json()
    assert result.error_message == "ConnectionError: no answer from redis://:***@h/0, tried ***"
    assert "tried ***" in result.metadata["error"]["traceback"]
    assert "leaky-p" in "".join(traceback.format_exception(ConnectionError("leaky-p")))


@pytest.mark.parametrize("password", ["pa#leak", "pa/leak", "12?leak", "1/x@leak", 'w@s:leak/%41?#&="'])
def test_a_password_that_is_not_percent_encoded_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(ValidationError, match="percent-encoded") as raised:
        ConductorConfig(broker_url=f"redis://someone:{password}@localhost/0")
    assert "leak" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:not-quoted@5@localhost/0",
        "redis://[::1]:6379/0?ssl_password=a@b",
        "sentinel://:one@a:1;sentinel://:two@b:2/0",
        "amqp://u:p%40s%2F%23@h:5672/%2Fvhost",
    ],
)
def test_urls_that_can_be_read_are_accepted(url: str) -> None:
    assert ConductorConfig(broker_url=url).broker_url == url
