"""`conductor dlq list`, `show`, `replay` and `purge`."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from conductor.broker.addresses import find_addresses
from conductor.broker.dead_letter_queue import DeadLetterQueue, not_found
from conductor.broker.letter_filter import Filters
from conductor.cli.execution import FAILED
from conductor.cli.letter_view import describe, table_of
from conductor.cli.output import Output
from conductor.cli.summary import counted
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetterReason
from conductor.core.exceptions import ConfigurationError


@dataclass(frozen=True)
class Choice:
    """The letters that a command is about; times in seconds."""

    letter_id: str | None
    reason: DeadLetterReason | None
    agent: str | None
    older_than: float | None
    newer_than: float | None

    @property
    def is_open(self) -> bool:
        """Whether all letters are meant."""
        return all(value is None for value in asdict(self).values())

    @property
    def filters(self) -> Filters:
        """What letters are chosen by beside an id."""
        return {
            "reason": self.reason,
            "agent": self.agent,
            "older_than": self.older_than,
            "newer_than": self.newer_than,
        }


async def show_list(config: ConductorConfig, output: Output, choice: Choice, limit: int, offset: int) -> int:
    """List letters."""
    async with _dead_letters(config) as queue:
        page = await queue.page(limit=limit, offset=offset, **choice.filters)
    if not output.as_json:
        if page.letters:
            output.show(table_of(page.letters, narrow=output.is_narrow))
        output.say(f"{len(page.letters)} of {_letters(page.total)}")
        _say_unreadable(output, page.unreadable)
    letters = [letter.model_dump(mode="json") for letter in page.letters]
    output.emit({"letters": letters, "total": page.total, "unreadable": page.unreadable}, indent=2)
    return 0


async def show_one(config: ConductorConfig, output: Output, letter_id: str) -> int:
    """Show a letter."""
    async with _dead_letters(config) as queue:
        letter = await queue.get(letter_id)
    if letter is None:
        raise not_found(letter_id)
    if not output.as_json:
        output.say(describe(letter))
    output.emit(letter.model_dump(mode="json"), indent=2)
    return 0


async def replay(config: ConductorConfig, output: Output, choice: Choice) -> int:
    """Replay letters; a failure if one of them could not be replayed."""
    async with _dead_letters(config) as queue:
        report = await queue.replay(choice.letter_id, all=choice.is_open, **choice.filters)
    output.say(f"replayed {_letters(len(report.replayed))}")
    for letter_id, reason in report.refused.items():
        output.say(f"not replayed: {letter_id}: {reason}")
    _say_unreadable(output, report.unreadable)
    output.emit(asdict(report), indent=2)
    return FAILED if report.refused else 0


async def purge(config: ConductorConfig, output: Output, choice: Choice, *, sure: bool) -> int:
    """Purge letters, after asking where it is more than one."""
    async with _dead_letters(config) as queue:
        if not sure and choice.letter_id is None:
            number = (await queue.page(limit=0, **choice.filters)).total
            if number > 1 and not await _agreed(output, number):
                output.say("nothing was deleted")
                output.emit({"purged": 0})
                return FAILED
        purged = await queue.purge(choice.letter_id, all=choice.is_open, **choice.filters)
    output.say(f"deleted {_letters(purged)}")
    output.emit({"purged": purged})
    return 0


@contextlib.asynccontextmanager
async def _dead_letters(config: ConductorConfig) -> AsyncIterator[DeadLetterQueue]:
    """Give the queue of what is configured or runs; only tasks that are replayed need a Redis as well."""
    try:
        addresses = await asyncio.to_thread(find_addresses, config)
    except ConfigurationError as error:
        if error.error_code != "NO_REDIS" or config.broker_url is None:
            raise
        queue = DeadLetterQueue(config, config.broker_url, None)
    else:
        queue = DeadLetterQueue(config, addresses.broker_url, addresses.redis_url)
    try:
        yield queue
    finally:
        await queue.close()


async def _agreed(output: Output, number: int) -> bool:
    """Ask on a terminal; without one that is wrong use."""
    if not sys.stdin.isatty():
        raise ConfigurationError(f"this deletes {_letters(number)}: say --yes where nobody can be asked")
    output.ask(f"Delete {_letters(number)} for good? [y/N] ")
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    # Not input() at once: Ctrl-C would not end it.
    loop.add_reader(sys.stdin, there.set)
    try:
        await there.wait()
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    finally:
        loop.remove_reader(sys.stdin)


def _letters(number: int) -> str:
    return counted(number, "dead letter")


def _say_unreadable(output: Output, number: int) -> None:
    if number:
        messages = "1 message that is" if number == 1 else f"{number} messages that are"
        output.say(f"left in the queue: {messages} no dead letter")
