"""The documents are a site that builds without a warning, and has all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import conductor

DOCS = Path(__file__).parents[1] / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    # A machine without a network has to do.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", CONFIG, "-d", directory]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    navigation = CONFIG.read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": ([-a-z]+)\.md$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in DOCS.glob("*.md"))
    assert {f"{name}.html" for name in listed} <= {page.name for page in site.glob("*.html")}


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(https?:)?//[^>]*>")
    for page in site.glob("*.html"):
        assert not loads.search(page.read_text()), page.name


def test_the_reference_has_every_public_name(site: Path) -> None:
    text = (site / "reference.html").read_text()
    missing = [
        name for name in conductor.__all__ if not re.search(rf'id="?conductor\.[a-z_.]*{name}"?', text)
    ]
    assert not missing
