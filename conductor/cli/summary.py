"""What came of a task, in a few words."""

from typing import Any

from conductor.core.enums import AgentType, TaskStatus
from conductor.core.models import TaskResult

FINDINGS_SHOWN = 5
SKIPPED_SHOWN = 5


def headline(agent_type: AgentType | None, result: TaskResult) -> str:
    """One line: what the agent did or found, or why it did not."""
    if result.status is not TaskStatus.COMPLETED:
        return (result.error_message or result.status.value).partition("\n")[0]
    describe = _DESCRIBE.get(agent_type) if agent_type else None
    try:
        return describe(result.output_data) if describe else ""
    except (KeyError, TypeError):
        # An agent of somebody else's may serve the type and put out other things.
        return ""


def details(agent_type: AgentType | None, result: TaskResult) -> list[str]:
    """More lines for the summary at the end of a run."""
    if result.status is not TaskStatus.COMPLETED:
        return (result.error_message or "").splitlines()[1:]
    output = result.output_data
    try:
        if agent_type is AgentType.REVIEW:
            return _findings(output)
        if agent_type is AgentType.DEVOPS:
            return [f"sha256 {output['sha256']}", output["path"]]
        if agent_type is AgentType.CODING:
            return list(output["files_changed"])
        if agent_type is AgentType.TEST_DATA:
            return _skipped(output)
        if agent_type is AgentType.MONITOR:
            return list(output["feedback"]["recommendations"])
    except (KeyError, TypeError):
        pass
    return []


def _coding(output: dict[str, Any]) -> str:
    files = len(output["files_changed"])
    fixes = counted(output["fixes"], "fix", "es")
    if output.get("unsafe_fixes"):
        fixes += f" ({output['unsafe_fixes']} of them unsafe)"
    return f"{fixes}, {counted(files, 'file')} changed, {counted(output['remaining'], 'finding')} left"


def _review(output: dict[str, Any]) -> str:
    """Tell the findings of the linter, which the coding agent counts as well, from those of complexity."""
    complexity = output["complexity"]
    over = output["by_code"].get("complexity", 0)
    return (
        f"{counted(output['findings_total'] - over, 'finding')}, and "
        f"{counted(over, 'function')} of {complexity['functions']} above complexity {complexity['threshold']}"
    )


def _test_data(output: dict[str, Any]) -> str:
    skipped = f", {len(output['skipped'])} skipped" if output["skipped"] else ""
    return f"{counted(output['cases'], 'case')} for {counted(len(output['functions']), 'function')}{skipped}"


def _test(output: dict[str, Any]) -> str:
    skipped = f", {output['skipped']} skipped" if output["skipped"] else ""
    return f"{output['passed']} passed{skipped} in {output['duration_seconds']:.1f} s"


def _devops(output: dict[str, Any]) -> str:
    return f"{output['wheel']}, {output['size_bytes']:,} bytes"


def _deploying(output: dict[str, Any]) -> str:
    installed, script = output["installed"], output["entry_point"]
    did = " ".join([script, *output["arguments"]]) if script else f"import {', '.join(output['imported'])}"
    return (
        f"{installed['name']} {installed['version']} on Python {output['environment']['python']}: {did} works"
    )


def _monitor(output: dict[str, Any]) -> str:
    feedback = output["feedback"]
    if output["healthy"]:
        return "healthy"
    return f"{feedback['severity']}: {'; '.join(feedback['findings'])}"


_DESCRIBE = {
    AgentType.CODING: _coding,
    AgentType.REVIEW: _review,
    AgentType.TEST_DATA: _test_data,
    AgentType.TEST: _test,
    AgentType.DEVOPS: _devops,
    AgentType.DEPLOYING: _deploying,
    AgentType.MONITOR: _monitor,
}


def _findings(output: dict[str, Any]) -> list[str]:
    lines = [f"{f['file']}:{f['line']}: {f['code']} {f['message']}" for f in output["findings"]]
    more = output["findings_total"] - FINDINGS_SHOWN
    return lines[:FINDINGS_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _skipped(output: dict[str, Any]) -> list[str]:
    lines = [f"no cases for {entry['name']}: {entry['reason']}" for entry in output["skipped"]]
    more = len(lines) - SKIPPED_SHOWN
    return lines[:SKIPPED_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def counted(number: int, word: str, plural: str = "s") -> str:
    """Write how many of a thing there are; `plural` is what is added to the word for any number but one."""
    return f"{number} {word}{'' if number == 1 else plural}"
