"""`conductor show ID`: all that is known of an agent, a workflow, a task or a dead letter."""

import json
from collections import Counter
from datetime import datetime
from typing import Any

from rich.text import Text

from conductor.broker.dead_letter_queue import SHORT_ID
from conductor.broker.liveness import heartbeat_limit, lives
from conductor.broker.task_list import TaskRecord, find_ids, task_records
from conductor.cli.letter_view import describe
from conductor.cli.listing import ago, name_of
from conductor.cli.output import Output
from conductor.cli.servers import Lookout, looking, servers_of_a_run
from conductor.cli.status import agent_data
from conductor.cli.summary import counted
from conductor.cli.views import View, present
from conductor.core.config import ConductorConfig
from conductor.core.dead_letters import DeadLetter
from conductor.core.exceptions import ConductorError, MessageBusError
from conductor.core.models import TaskResult
from conductor.core.state import AgentState, WorkflowState


async def show(config: ConductorConfig, output: Output, some_id: str, every: float | None) -> int:
    """Show what has this id, or the only thing whose id begins so."""
    async with servers_of_a_run(config) as config, looking(config) as lookout:
        return await present(output, lambda: _look(lookout, some_id), every)


async def _look(lookout: Lookout, some_id: str) -> View:
    view, trouble = None, None
    try:
        view = await _view(lookout, some_id)
    except MessageBusError as error:
        trouble = error
    if view is None and len(some_id) >= SHORT_ID:
        ids = await find_ids(lookout.state.link, lookout.config.redis.key_prefix, some_id)
        if len(ids) > 1:
            raise ConductorError(f"several ids begin with {some_id!r}: {', '.join(ids)}", "ID_AMBIGUOUS")
        view = await _view(lookout, ids[0]) if ids else None
    if view is None and trouble is not None:
        raise trouble  # It may be a dead letter.
    if view is None:
        raise ConductorError(
            f"there is no agent, workflow, task or dead letter {some_id!r}: see 'conductor agents', "
            "'conductor workflows', 'conductor tasks' and 'conductor dlq list'",
            "ID_NOT_FOUND",
        )
    return view


async def _view(lookout: Lookout, some_id: str) -> View | None:
    agent = await lookout.state.get_agent_state(some_id)
    if agent is not None:
        return _agent(agent, lookout.config)
    workflow = await lookout.state.get_workflow_state(some_id)
    if workflow is not None:
        return _workflow(workflow)
    result = await lookout.state.get_task_result(some_id)
    [record] = await task_records(lookout.state.link, [some_id])
    letter, trouble = None, ""
    try:
        letter = await lookout.dead_letters.get(some_id)
    except MessageBusError as error:
        if result is None and record is None:
            raise
        trouble = error.message
    if result is not None or record is not None:
        return _task(some_id, result, record, letter, trouble)
    return None if letter is None else View(_letter_data(letter), [describe(letter)])


def _agent(agent: AgentState, config: ConductorConfig) -> View:
    alive = lives(agent, heartbeat_limit(config))
    data = {"kind": "agent", **agent_data(agent, alive), "state": agent.model_dump(mode="json")}
    facts = {
        "agent": agent.agent_id,
        "type": agent.agent_type.value,
        "status": agent.status.value,
        "heartbeat": "never" if agent.last_heartbeat is None else _when(agent.last_heartbeat),
        "alive": "yes" if alive else "no",
        "node": agent.metadata.get("node"),
        "task": agent.current_task_id,
        "done": f"{len(agent.completed_tasks)} completed, {len(agent.failed_tasks)} failed",
        "errors": agent.error_count or None,
        "since": _when(agent.created_at),
    }
    parts = [_facts(facts)]
    parts += _lines("latest failed tasks", reversed(agent.failed_tasks[-5:]))
    return View(data, [*parts, *_lines("latest completed tasks", reversed(agent.completed_tasks[-5:]))])


def _workflow(state: WorkflowState) -> View:
    data = {"kind": "workflow", **state.model_dump(mode="json")}
    facts = {
        "workflow": state.workflow_id,
        "name": name_of(state),
        "status": state.status.value,
        "outcome": state.metadata.get("outcome"),
        "phase": state.current_phase.value,
        "started": _when(state.started_at),
        "ended": state.completed_at and _when(state.completed_at),
        "took": None if state.duration_seconds is None else f"{state.duration_seconds:.1f} s",
        "feedback": counted(state.feedback_count, "round") if state.feedback_count else None,
    }
    rounds = Counter[str]()
    phases = (
        f"{_phase_name(phase, rounds)}: {phase.get('result')}, {phase.get('completed_count', 0)} completed, "
        f"{phase.get('failed_count', 0)} failed"
        for phase in state.phase_history
    )
    names = _task_names(state)
    tasks = (
        f"{names.get(task_id, task_id)}: {result.status.value} by {result.agent_id}"
        f"{f': {_one_line(result.error_message)}' if result.error_message else ''}\n  {task_id}"
        for task_id, result in sorted(state.task_results.items(), key=lambda item: item[1].started_at)
    )
    errors = (
        f"{error.get('task_id') or error.get('phase') or '-'}: {error.get('error_code')}: "
        f"{_one_line(str(error.get('message')))}"
        for error in state.error_log
    )
    parts = [_facts(facts), *_lines("phases", phases), *_lines("tasks", tasks), *_lines("errors", errors)]
    return View(data, parts)


def _phase_name(phase: dict[str, Any], rounds: Counter[str]) -> str:
    """Name a phase, and the feedback round that it is of; `rounds` counts those before it."""
    name = str(phase.get("phase"))
    number = rounds[name]
    rounds[name] += 1
    return f"{name} (feedback {number})" if number else name


def _task(
    task_id: str,
    result: TaskResult | None,
    record: TaskRecord | None,
    letter: DeadLetter | None,
    trouble: str,
) -> View:
    status = record.status if record is not None else None
    revoked = record.revoked_result if record is not None else None
    if status is not None:
        result = None  # That of a run before this one.
    elif revoked is not None and (result is None or result.status is not revoked.status):
        result, status = revoked, revoked.status
    elif result is not None:
        status = result.status
    workflow_id = (result and result.metadata.get("workflow_id")) or (record and record.workflow_id) or None
    data: dict[str, Any] = {
        "kind": "task",
        "task_id": task_id,
        "name": record.name if record is not None else "",
        "status": status.value if status is not None else record and record.state,
        "agent_id": result.agent_id
        if result not in (None, revoked)
        else (record and record.agent_id) or None,
        "queue": record.queue if record is not None else None,
        "workflow_id": workflow_id,
        "retries": record.retries if record is not None else None,
        "result": result and result.model_dump(mode="json"),
        "dead_letter": letter and _letter_data(letter),
    }
    return View(data, _task_parts(data, result, letter, trouble))


def _task_parts(
    data: dict[str, Any], result: TaskResult | None, letter: DeadLetter | None, trouble: str
) -> list[Text]:
    error = result.metadata.get("error") if result is not None else None
    error = error if isinstance(error, dict) else {}
    facts = {
        "task": data["task_id"],
        "name": data["name"],
        "status": data["status"],
        "agent": data["agent_id"],
        "queue": data["queue"],
        "workflow": data["workflow_id"],
        "retries": data["retries"],
        "started": result and _when(result.started_at),
        "took": result and result.duration_seconds is not None and f"{result.duration_seconds:.2f} s",
        "error": _error_line(result, error),
        "dead letter": letter
        and f"{letter.letter_id} ({letter.reason.value}, {counted(letter.attempts, 'attempt')})",
        "letters": trouble and f"cannot be looked at: {trouble}",
    }
    parts = [_facts(facts)]
    if error.get("traceback"):
        parts += [Text("\ntraceback", "bold"), Text(str(error["traceback"]).rstrip())]
    if result is not None and result.output_data:
        parts += [
            Text("\noutput", "bold"),
            Text(json.dumps(result.output_data, indent=2, ensure_ascii=False)),
        ]
    return parts


def _letter_data(letter: DeadLetter) -> dict[str, Any]:
    return {"kind": "dead_letter", **letter.model_dump(mode="json")}


def _error_line(result: TaskResult | None, error: dict[str, Any]) -> str | None:
    if result is None or not result.error_message:
        return None
    code = error.get("error_code")
    return f"{code}: {result.error_message}" if code else result.error_message


def _task_names(state: WorkflowState) -> dict[str, str]:
    definition = state.metadata.get("definition")
    tasks = definition.get("tasks") if isinstance(definition, dict) else None
    return {task["task_id"]: task["name"] for task in tasks or () if {"task_id", "name"} <= task.keys()}


def _facts(facts: dict[str, Any]) -> Text:
    text = Text()
    for name, value in facts.items():
        if value not in (None, "", False):
            text.append(f"{name:<12}", "bold").append(f"{value}\n")
    text.rstrip()
    return text


def _lines(title: str, lines: Any) -> list[Text]:
    found = [Text(line) for line in lines]
    return [Text(f"\n{title}", "bold"), *found] if found else []


def _when(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S} ({ago(moment)} ago)"


def _one_line(text: str) -> str:
    return " ".join(text.split())
