"""What is in the durable queue of dead letters."""

from conductor.broker.dead_letters import letter_of
from conductor.broker.topology import dead_letter_queue
from conductor.broker.transport import kombu_connection
from conductor.core.dead_letters import DeadLetter


def filed_letters(url: str, message_id: str | None = None) -> list[DeadLetter]:
    """The dead letters, or those of one message; all of them stay in the queue."""
    letters = []
    with kombu_connection(url) as connection:
        channel = connection.default_channel
        queue = dead_letter_queue()(channel)
        queue.declare()
        while (found := queue.get()) is not None:
            letters.append(letter_of(found.body, found.headers))
        channel.close()
    return [letter for letter in letters if message_id in (None, letter.message_id)]
