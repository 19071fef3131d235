"""Who asked: where the answers to received requests go."""

from __future__ import annotations

import time
from collections import OrderedDict

#: Seconds that an origin is kept after its asker stopped waiting: a late answer then disturbs only the asker.
_GRACE = 30.0
#: Seconds that an origin is kept when the request does not say how long its asker waits.
_DEFAULT_LIFE = 3600.0
_LIMIT = 65536
#: Inboxes of one correlation id, at most; requests may share one.
_INBOXES = 16


class Origins:
    """Remembers the inbox of each request's asker until nobody waits; bounded, the oldest go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[tuple[str, ...], float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, correlation_id: str, inbox: str, answer_by: float | None) -> None:
        """Note that answers with `correlation_id` go to `inbox`; `answer_by` in seconds since the epoch."""
        now = time.time()
        until = now + _DEFAULT_LIFE if answer_by is None else answer_by + _GRACE
        others = [other for other in self.find(correlation_id) if other != inbox]
        self._known[correlation_id] = ((*others, inbox)[-_INBOXES:], until)
        self._known.move_to_end(correlation_id)
        while self._known and (len(self._known) > _LIMIT or next(iter(self._known.values()))[1] < now):
            self._known.popitem(last=False)

    def find(self, correlation_id: str) -> tuple[str, ...]:
        """The inboxes of all who asked, the latest last; empty when nobody is known."""
        known = self._known.get(correlation_id)
        return () if known is None else known[0]
