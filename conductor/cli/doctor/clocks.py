"""Whether clocks agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conductor.cli.doctor.findings import Finding, ok, problem, warning

if TYPE_CHECKING:
    from conductor.core.config import WorkConfig

#: Seconds that clocks may differ; see docs/delivery.md.
TOLERANCE = 2.0


def check_clock(check: str, whose: str, ahead: float, work: WorkConfig) -> Finding:
    """Judge a clock that is `ahead` seconds before that of this machine, or behind it where negative.

    The age of a task that is being worked on is told by clocks: one that differs by more than what lies
    between the visibility timeout and the interval of touches takes it for abandoned.
    """
    limit = max(work.visibility_timeout - work.touch_interval, TOLERANCE)
    side = "ahead of" if ahead > 0 else "behind"
    told = f"The clock of {whose} is {abs(ahead):.1f} s {side} this machine's"
    if abs(ahead) <= TOLERANCE:
        return ok(check, f"{told} ({TOLERANCE:g} s are allowed).")
    advice = "Keep the clocks of all machines together with NTP or chrony."
    if abs(ahead) >= limit:
        return problem(
            check,
            f"{told}; from {limit:g} s on tasks that run are taken for abandoned and started again.",
            advice,
        )
    return warning(
        check, f"{told}, more than the {TOLERANCE:g} s by which ages and expiry may be wrong.", advice
    )
