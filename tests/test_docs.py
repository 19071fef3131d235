"""What the documents list is what there is."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from conductor.core.config import ConductorConfig
from workers.agents import AGENTS
from workers.agents.thresholds import THRESHOLDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def names(model: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        section = isinstance(kind, type) and issubclass(kind, BaseModel)
        found |= names(kind, f"{prefix}{name}.") if section else {prefix + name}
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_every_table_is_in_one_piece(page: Path) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE)
    assert [table for table in tables if not re.match(r".*\n\|[-| ]+\n", table)] == []


def test_every_setting_is_documented_and_no_other() -> None:
    text = (DOCS / "configuration.md").read_text()
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE)) == names(ConductorConfig)


def test_every_agent_is_documented() -> None:
    text = (DOCS / "shipped-agents.md").read_text()
    assert re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE) == list(AGENTS)


def test_every_threshold_is_documented() -> None:
    text = (DOCS / "shipped-agents.md").read_text()
    assert set(re.findall(r"`((?:max|min)_[a-z_]+)`", text)) >= THRESHOLDS.keys()


def test_every_alert_has_a_section_in_the_runbook_and_no_other() -> None:
    groups = yaml.safe_load((DOCS / "grafana" / "alerts.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    sections = re.split(r"^## ", (DOCS / "runbook.md").read_text(), flags=re.MULTILINE)[1:]
    assert sorted(section.split("\n")[0] for section in sections) == sorted(alerts)
    for section in sections:
        assert re.findall(r"^\*\*(.*?):\*\*", section, re.MULTILINE) == ["Means", "Look", "Do"]
