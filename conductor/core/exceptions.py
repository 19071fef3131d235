"""The errors a caller may meet.

ConductorError
├── ConfigurationError      CONFIG_ERROR
├── AgentError              AGENT_ERROR
├── WorkflowError           WORKFLOW_ERROR
├── MessageBusError         MESSAGE_BUS_ERROR
├── StateError              STATE_ERROR
└── PolicyViolationError    POLICY_VIOLATION
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def _as_details(details: object) -> dict[str, Any]:
    """Copy `details`; Celery's JSON turns what it cannot encode into a repr, which is kept under a key."""
    if details is None:
        return {}
    if isinstance(details, Mapping):
        return dict(details)
    return {"details": details}


def _rebuild(cls: type[ConductorError], args: tuple[object, ...], state: dict[str, Any]) -> ConductorError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class ConductorError(Exception):
    """The base of every error raised by Conductor on purpose.

    `error_code` is the word a program decides by, `details` holds JSON-like facts for it; `str(error)` is
    the message. `args` are the constructor's arguments, so that Celery's JSON results rebuild the object.
    """

    def __init__(
        self, message: str, error_code: str = "UNKNOWN_ERROR", details: Mapping[str, Any] | None = None
    ) -> None:
        self.message = message
        self.error_code = error_code
        self.details = _as_details(details)
        super().__init__(message, error_code, self.details)

    def __str__(self) -> str:
        return str(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not `cls(*args)`: a user's subclass may have a constructor of another shape.
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    def to_dict(self) -> dict[str, Any]:
        """Give the error as plain data: error_type, message, error_code, details."""
        return {
            "error_type": type(self).__name__,
            "message": self.message,
            "error_code": self.error_code,
            "details": dict(self.details),
        }


class ConfigurationError(ConductorError):
    """The configuration cannot be used as it is."""

    def __init__(
        self, message: str, error_code: str = "CONFIG_ERROR", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, error_code, details)


class AgentError(ConductorError):
    """An agent could not be found, started or could not do its task."""

    def __init__(
        self,
        message: str,
        agent_id: str,
        task_id: str | None = None,
        error_code: str = "AGENT_ERROR",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        ids = {"agent_id": agent_id} if task_id is None else {"agent_id": agent_id, "task_id": task_id}
        super().__init__(message, error_code, ids | _as_details(details))
        self.agent_id = agent_id
        self.task_id = task_id
        self.args = (message, agent_id, task_id, error_code, self.details)


class WorkflowError(ConductorError):
    """A workflow cannot go on."""

    def __init__(
        self,
        message: str,
        workflow_id: str,
        error_code: str = "WORKFLOW_ERROR",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, error_code, {"workflow_id": workflow_id} | _as_details(details))
        self.workflow_id = workflow_id
        self.args = (message, workflow_id, error_code, self.details)


class MessageBusError(ConductorError):
    """The message bus refused or could not do an operation."""

    def __init__(
        self, message: str, error_code: str = "MESSAGE_BUS_ERROR", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, error_code, details)


class StateError(ConductorError):
    """The state manager refused or could not do an operation."""

    def __init__(
        self, message: str, error_code: str = "STATE_ERROR", details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, error_code, details)


class PolicyViolationError(ConductorError):
    """A policy denied what was about to be done."""

    def __init__(
        self,
        message: str,
        policy_name: str,
        violation_details: str = "",
        error_code: str = "POLICY_VIOLATION",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        facts = {"policy_name": policy_name}
        if violation_details:
            facts["violation_details"] = violation_details
        super().__init__(message, error_code, facts | _as_details(details))
        self.policy_name = policy_name
        self.violation_details = violation_details
        self.args = (message, policy_name, violation_details, error_code, self.details)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and, one after the other, what it came from; each once."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
