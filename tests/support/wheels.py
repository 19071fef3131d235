"""Real wheels, without a build."""

import zipfile
from pathlib import Path


def make_wheel(
    directory: Path,
    files: dict[str, str],
    *,
    name: str = "demo",
    scripts: dict[str, str] | None = None,
    requires: list[str] | None = None,
) -> Path:
    """A wheel of version 1.0 with these files; `scripts` are name to module:function."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires or [])
    entries = "".join(f"{script} = {target}\n" for script, target in (scripts or {}).items())
    content = files | {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{entries}",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return wheel
