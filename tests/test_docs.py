"""What the documents list is what there is."""

import re
from pathlib import Path

from pydantic import BaseModel

from conductor.core.config import ConductorConfig
from workers.agents import AGENTS
from workers.agents.thresholds import THRESHOLDS

DOCS = Path(__file__).parents[1] / "docs"


def names(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        section = isinstance(kind, type) and issubclass(kind, BaseModel)
        found |= names(kind, f"{prefix}{name}.") if section else {prefix + name}
    return found


def test_every_setting_is_documented_and_no_other() -> None:
    text = (DOCS / "configuration.md").read_text()
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE)) == names(ConductorConfig)


def test_every_agent_is_documented() -> None:
    text = (DOCS / "shipped-agents.md").read_text()
    assert re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE) == list(AGENTS)


def test_every_threshold_is_documented() -> None:
    text = (DOCS / "shipped-agents.md").read_text()
    assert set(re.findall(r"`((?:max|min)_[a-z_]+)`", text)) >= THRESHOLDS.keys()
